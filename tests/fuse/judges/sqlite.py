import sqlite3
import threading


def use(k):
    db = sqlite3.connect("db", timeout=60, isolation_level=None)
    for i in range(20):
        db.execute("begin immediate")
        db.execute("insert into t values (?, ?)", (k, i))
        db.execute("commit")
    db.close()


db = sqlite3.connect("db", isolation_level=None)
print(db.execute("pragma journal_mode=wal").fetchone())
db.execute("create table t (k, i)")
threads = [threading.Thread(target=use, args=(k,)) for k in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(db.execute("select k, count(*), sum(i) from t group by k").fetchall())
print(db.execute("pragma integrity_check").fetchone())
print(db.execute("pragma journal_mode=delete").fetchone())
db.execute("delete from t where k = 1")
db.execute("vacuum")
print(db.execute("select count(*) from t").fetchone())
db.close()
