package main

import (
	"os"
	"slices"
	"testing"
)

// Only what can be read again from the program's file may be dropped.
func TestCleanMaps(t *testing.T) {
	const smaps = `00400000-02878000 r-xp 00000000 fe:00 99 /usr/bin/penstock
Rss:               25600 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
02878000-04d00000 r--p 02478000 fe:00 99 /usr/bin/penstock
Anonymous:             4 kB
04d00000-04f83000 rw-p 04900000 fe:00 99 /usr/bin/penstock
Anonymous:             0 kB
05000000-05001000 r--p 04900000 fe:00 99 /usr/bin/penstock (deleted)
Anonymous:             0 kB
7f0000000000-7f0000001000 r--p 00000000 fe:00 98 /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000002000-7f0000003000 r--p 00000000 00:00 0
Anonymous:             0 kB
`
	if got, want := cleanMaps(smaps, "/usr/bin/penstock"), []mapped{{0x400000, 0x2878000}}; !slices.Equal(got, want) {
		t.Errorf("clean maps are %x, want %x", got, want)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(cleanMaps(string(ours), program)) == 0 {
		t.Error("this program has no code that can be dropped")
	}
	unmapProgram() // and goes on
}
