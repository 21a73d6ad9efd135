mkdir -p src/deep/er
for i in $(seq 40); do seq $((i * 50)) > src/f$i; done
ln -s f1 src/link
ln src/f2 src/hard
chmod 600 src/f3
touch -d @1000000000.5 src/f4
mkfifo src/deep/fifo
: > src/deep/er/empty
tar -cf t.tar --sort=name src
mkdir x
tar -xf t.tar -C x
diff -r --no-dereference -x fifo src x/src && echo same
cp -a src y
find y ! -type d -printf '%P %y %m %n %s %l\n' | sort
find y -name f4 -printf '%T@\n'
rsync -a --delete src/ z/
rsync -aiO --delete src/ z/
rm z/f1
echo more >> z/f5
rsync -aiO --checksum src/ z/ | cut -c 1-3,12-
find src -name 'f*' | wc -l
grep -rl 1999 src | wc -l
du -s --apparent-size src | wc -l
tar -df t.tar && echo no difference
