package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// unmapProgram drops the pages of the program's code and constants: those that are needed
// again are mapped again, from the system's cache. Source: madvise(2), proc(5).
func unmapProgram() {
	program, err := os.Executable()
	if err != nil {
		return
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	for _, m := range cleanMaps(string(smaps), program) {
		// Not by syscall.Madvise: that wants a slice of what is no memory of Go's.
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, m.begin, m.end-m.begin, syscall.MADV_DONTNEED)
	}
}

type mapped struct{ begin, end uintptr }

// cleanMaps finds the maps of a file, in the text of smaps, that cannot be written and
// are what the file has. Those of which a page was changed, as by a loader that moves the
// program, would lose the change.
func cleanMaps(smaps, file string) []mapped {
	var clean []mapped
	var now *mapped
	for line := range strings.Lines(smaps) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if key, ok := strings.CutSuffix(fields[0], ":"); ok {
			if key == "Anonymous" && now != nil {
				if len(fields) > 1 && fields[1] == "0" {
					clean = append(clean, *now)
				}
				now = nil
			}
			continue
		}
		now = nil
		from, to, _ := strings.Cut(fields[0], "-")
		begin, beginErr := strconv.ParseUint(from, 16, 64)
		end, endErr := strconv.ParseUint(to, 16, 64)
		if len(fields) == 6 && fields[5] == file && strings.HasPrefix(fields[1], "r-") && beginErr == nil && endErr == nil && begin < end {
			now = &mapped{uintptr(begin), uintptr(end)}
		}
	}
	return clean
}
