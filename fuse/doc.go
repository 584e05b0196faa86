// Package fuse shows a directory through the kernel's FUSE: a loopback file system for SQLite databases.
//
// A Session reads requests from /dev/fuse in its own loop and answers them from the files under Options.Root. What a
// request means for a database is not known here: the Backend is asked before a request touches a file, and told
// afterwards. The package promises
//
//   - stable inode numbers: the nodeid the kernel sees is the inode number of the file shown (the root is 1), so locks
//     that SQLite keys by inode survive everything but the file itself;
//   - one I/O mode per inode from its first open to its last close (see Mode): the kernel answers EIO otherwise;
//   - no path of the outside is ever followed: every node is pinned by an O_PATH|O_NOFOLLOW descriptor, so a symbolic
//     link in the tree cannot lead the daemon, which is root, out of it;
//   - a request that waits (for the Backend or for the disk) keeps another from being read for a few milliseconds at most.
//
// File locks are not negotiated with the kernel, without a Locker: fcntl, OFD and flock locks live on the FUSE inode, cost
// no request, and a process that wants to take part in them (this one too) opens the file through the mount. With one
// each of fcntl's is a request, and lives on the inode behind (locks.go), or on that of a first mount (beside.go).
//
// A process that is killed while one of its threads waits for an answer of its own mount cannot die: the descriptor of
// /dev/fuse stays open in it, so nobody ends the wait but "umount -f". Closing its descriptors is no such wait (no FLUSH
// is sent), opening, stat and fsync are; so a daemon uses its own mount for nothing but the opens its locks need.
//
// How a request is served:
//
//	/dev/fuse --read--> serve loop --ProtocolServer--> loopback methods --*at(2), /proc/self/fd--> files under Root
//	                      |  one goroutine reads and answers; when a request is kept waiting by another one,
//	                      |  a second reads, and those that wait are handed over for a while (relief.go)
//	                      '--write--> answer; notifications are written to the same descriptor
package fuse
