printf 'all: prog\n\t./prog > out\nprog: prog.c\n\tcc -o prog prog.c\n' > Makefile
printf '#include <stdio.h>\nint main(void){puts("built here");return 3;}\n' > prog.c
make -s
cat out
./prog
echo $?
touch -d '1 hour ago' out
printf '#!/bin/sh\necho script $0\n' > s
chmod +x s
./s
chmod -x s
./s
make -q prog && echo up to date
mkdir py
printf 'x = 1\n' > py/m.py
python3 -m compileall -q py && ls py/__pycache__ | sed s/-.*//
cd py
python3 -c 'import m; print(m.x)'
cp /bin/true t
./t && echo ran
echo > t
