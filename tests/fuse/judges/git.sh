export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_DATE='@0 +0000' GIT_COMMITTER_DATE='@0 +0000'
git config --global user.email a@b
git config --global user.name n
git init -q -b main r
cd r
for i in $(seq 30); do mkdir -p d$i; seq $i > d$i/f; done
git add .
git commit -qm one
git mv d1 e1
seq 9 > d2/f
rm -r d3
git status --short
git commit -qam two
git log --oneline --stat | tail -3
git gc -q
git fsck
cd ..
git clone -q r s
cd s
git status --short
git log --format=%H
ls | wc -l
git checkout -q HEAD~1
git status --short
ls e1
