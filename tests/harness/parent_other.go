//go:build !linux

package harness

import "syscall"

// dieWithParent has no means here; the clean-up of each test stops its processes.
func dieWithParent() *syscall.SysProcAttr { return nil }
