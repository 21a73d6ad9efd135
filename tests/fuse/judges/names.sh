mkdir -p a/b/c
echo one > a/f
ln a/f a/g
ln -s f a/s
ln -s /nonexistent a/dangling
mkfifo a/p
mv a/g a/b/h
cat a/b/h a/s
stat -c '%F %a %h %s' a/f a/b/h a/s a/p
ls -A a a/b
readlink a/s a/dangling
mv -T a/b a/d
mkdir a/e
mv -T a/d a/e
ls a/e
rmdir a/e
rm -r a/e
mv a/f a/nosuch/f
touch "$(printf 'new\nline\377')"
ls -b
mkdir a
rmdir nosuch
rm a
cat a
cd a/f
