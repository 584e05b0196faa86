package config

import "testing"

func TestMountedIn(t *testing.T) {
	const table = `36 35 98:0 / / rw,noatime shared:1 - ext4 /dev/sda rw
40 36 0:39 / /srv/my\040app rw,nosuid - fuse.litefs litefs rw,user_id=0
41 36 0:40 / /srv/other rw - fuse.sshfs host rw
`
	for dir, want := range map[string]bool{"/srv/my app": true, "/srv/other": false, "/": false, "/srv": false} {
		if got := mountedIn(table, dir); got != want {
			t.Errorf("%s: got %v, want %v", dir, got, want)
		}
	}
}
