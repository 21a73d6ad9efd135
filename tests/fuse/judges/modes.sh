other='setpriv --reuid 1234 --regid 1234 --clear-groups'
umask 027
echo x > f
mkdir d
stat -c '%a %u %g' f d
chmod 4755 f
stat -c %a f
chown 1234:1234 f
stat -c '%a %u %g' f
chmod 6777 f
$other sh -c 'echo y >> f'
stat -c %a f
$other cat d/x
chmod 1777 .
$other touch mine
$other rm f
stat -c '%U %a' mine | sed s/.*' '//
chmod 777 d
chmod g+s d
chgrp 77 d
$other mkdir d/sub
stat -c '%a %g' d/sub
$other chmod 700 d
chmod 000 f
$other cat f
cat f
setpriv --reuid 1234 --regid 1 --groups 1234,77 cat f
$other chown 0 mine
chmod 6777 f
$other truncate -s 1 f
stat -c '%a %s' f
ls -ln | awk '{print $1, $2, $3, $4, $9}'
