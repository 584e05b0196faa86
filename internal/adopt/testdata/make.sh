#!/usr/bin/env bash
# Makes litefs-0.5.14.tar.gz: the data directory of a real LiteFS 0.5.14 that was killed, with a database in
# each state in which one can be left. make.sh BINARY, as root; BINARY is superfly's cmd/litefs at v0.5.14.
set -euo pipefail
litefs=$1
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
mkdir "$dir/mnt" "$dir/data"
cat >"$dir/litefs.yml" <<-END
	fuse: {dir: $dir/mnt}
	data: {dir: $dir/data}
	http: {addr: "127.0.0.1:26100"}
	lease: {type: static, advertise-url: "http://127.0.0.1:26100", hostname: localhost, candidate: true}
END
"$litefs" mount -config "$dir/litefs.yml" &
pid=$!
until mountpoint -q "$dir/mnt"; do sleep 0.1; done
cd "$dir/mnt"
sqlite3 del.db "create table t(a); insert into t values(1),(2)"
sqlite3 wal.db "pragma journal_mode=wal; create table t(a); insert into t values(zeroblob(9000))"
sqlite3 gone.db "create table t(a)"
rm gone.db
# Applications that die: one with a write-ahead log, one in the middle of a transaction that has spilled.
python3 - <<-END
	import sqlite3, os
	c = sqlite3.connect('wal.db'); c.execute("insert into t values(7)"); c.commit()
	p = sqlite3.connect('persist.db'); p.execute("pragma journal_mode=persist"); p.execute("create table t(a)"); p.commit()
	h = sqlite3.connect('del.db'); h.execute("pragma cache_size=1"); h.execute("begin immediate")
	h.executemany("insert into t values(?)", [("x"*500,)]*2000)
	os._exit(9)
END
kill -9 $pid
cd /
umount -l "$dir/mnt"
tar -C "$dir/data" -czf "$here/litefs-0.5.14.tar.gz" .
rm -rf "$dir"
