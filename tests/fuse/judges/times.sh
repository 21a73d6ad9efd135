touch -d '2001-02-03 04:05:06.789012345 UTC' f
stat -c '%.9X %.9Y' f
touch -a -d @7 f
stat -c '%X %.9Y' f
touch -d '1960-01-01 00:00:00.5 UTC' f
stat -c '%.9X %.9Y' f
touch -r f g
stat -c '%.9Y' g
mkdir d
touch -d @5 d
stat -c %Y d
touch d/x
test d -nt f && echo newer
echo y > f
test f -nt g && echo written
ln -s f s
touch -h -d @9 s
stat -c %Y s
