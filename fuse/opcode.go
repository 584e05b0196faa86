package fuse

import (
	"bytes"
	"strconv"
	"syscall"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// Opcodes of the FUSE protocol (include/uapi/linux/fuse.h).
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opReadlink    = 5
	opSymlink     = 6
	opMknod       = 8
	opMkdir       = 9
	opUnlink      = 10
	opRmdir       = 11
	opRename      = 12
	opLink        = 13
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opGetxattr    = 22
	opListxattr   = 23
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opGetlk       = 31
	opSetlk       = 32
	opAccess      = 34
	opCreate      = 35
	opInterrupt   = 36
	opDestroy     = 38
	opIoctl       = 39
	opBatchForget = 42
	opReaddirplus = 44
	opRename2     = 45

	maxOpcode = 64 // above all of them
)

var opcodeNames = [maxOpcode]string{
	1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR",
	10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS",
	18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH",
	26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 31: "GETLK", 32: "SETLK", 33: "SETLKW",
	34: "ACCESS", 35: "CREATE", 36: "INTERRUPT", 37: "BMAP", 38: "DESTROY", 39: "IOCTL", 40: "POLL",
	41: "NOTIFY_REPLY", 42: "BATCH_FORGET", 43: "FALLOCATE", 44: "READDIRPLUS", 45: "RENAME2", 46: "LSEEK",
	47: "COPY_FILE_RANGE", 48: "SETUPMAPPING", 49: "REMOVEMAPPING", 50: "SYNCFS", 51: "TMPFILE", 52: "STATX",
	53: "COPY_FILE_RANGE_64",
}

func opcodeName(op uint32) string {
	if op < maxOpcode && opcodeNames[op] != "" {
		return opcodeNames[op]
	}
	return "opcode " + strconv.Itoa(int(op))
}

// waits tells the requests that wait for the disk or the Backend as a rule from those that hardly ever do: what only
// looks at what the kernel holds in memory, and what changes it there.
func waits(in []byte) bool {
	switch headerOf(in).Opcode {
	case opLookup, opForget, opBatchForget, opGetattr, opReadlink, opStatfs, opOpendir, opReleasedir, opAccess,
		opInterrupt, opInit, opDestroy, opOpen, opCreate, opWrite, opRelease, opFlush, opGetlk, opSetlk:
		return false
	case opSetattr:
		return (*gofuse.SetAttrIn)(unsafe.Pointer(&in[0])).Valid&gofuse.FATTR_SIZE != 0
	}
	return true
}

// opensFile tells the requests whose answer has a new handle of a file.
func opensFile(op uint32) bool { return op == opOpen || op == opCreate }

// hasLargeAnswer tells the requests whose caller says how large the answer may be.
func hasLargeAnswer(op uint32) bool {
	switch op {
	case opRead, opReaddir, opReaddirplus, opGetxattr, opListxattr, opIoctl:
		return true
	}
	return false
}

// Counts returns how many requests of each kind the kernel has sent since the mount. Kinds never sent are absent.
func (s *Session) Counts() map[string]uint64 {
	counts := make(map[string]uint64)
	for op := range s.counts {
		if n := s.counts[op].Load(); n > 0 {
			counts[opcodeName(uint32(op))] = n
		}
	}
	return counts
}

// epollHack is a name that the ProtocolServer answers itself in the root directory, with a file that does not exist.
const epollHack = ".go-fuse-epoll-hack"

// reservedName returns the errno for a request about epollHack in the root: the file is not there and cannot be made.
func reservedName(in []byte) syscall.Errno {
	h := headerOf(in)
	if h.NodeId != rootID || len(in) > 1024 || !bytes.Contains(in, []byte(epollHack+"\x00")) {
		return 0
	}
	size := inHeaderSize
	switch h.Opcode {
	case opLookup, opUnlink, opRmdir, opSymlink:
	case opMknod:
		size = int(unsafe.Sizeof(gofuse.MknodIn{}))
	case opMkdir:
		size = int(unsafe.Sizeof(gofuse.MkdirIn{}))
	case opRename, opLink:
		size += 8
	case opRename2:
		size = int(unsafe.Sizeof(gofuse.RenameIn{}))
	case opCreate:
		size = int(unsafe.Sizeof(gofuse.CreateIn{}))
	default:
		return 0
	}
	if !bytes.HasPrefix(in[min(size, len(in)):], []byte(epollHack+"\x00")) {
		return 0
	}
	if h.Opcode == opLookup {
		return syscall.ENOENT
	}
	return syscall.EPERM
}
