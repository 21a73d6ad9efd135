printf 123456789 > f
printf X | dd of=f bs=1 seek=3 conv=notrunc status=none
cat f
echo
printf abc >> f
cat f
echo
truncate -s 5 f
cat f
echo
truncate -s 8 f
od -c f
: > f
stat -c %s f
printf end | dd of=sparse bs=1 seek=1M status=none
stat -c %s sparse
md5sum sparse
fallocate -l 100000 f
stat -c %s f
fallocate -p -o 0 -l 4096 f
md5sum f
exec 3<>f
rm f
echo deleted >&3
stat -L -c '%h %s' /proc/self/fd/3
cat < /proc/self/fd/3 | head -c 8
exec 3>&-
head -c 3000000 /dev/zero | tr '\0' z > big
md5sum < big
cp big copy
cmp big copy
dd if=big bs=777 2>/dev/null | md5sum
dd if=/dev/zero of=direct bs=4k count=10 oflag=direct status=none
stat -c %s direct
