//go:build !linux

package harness

import (
	"errors"
	"testing"
)

// Disk is a small file system of its own: on Linux only.
type Disk struct{ Dir string }

// NewDisk says why there is none.
func NewDisk(testing.TB, int64) (*Disk, string) { return nil, "a file system of its own needs Linux" }

// Full does nothing here.
func (*Disk) Full() {}

// Free does nothing here.
func (*Disk) Free() {}

// ReadOnly is not possible here.
func (*Disk) ReadOnly(bool) error { return errors.ErrUnsupported }

// Cage is a memory limit around processes: on Linux only.
type Cage struct{}

// NewCage says why there is none.
func NewCage(testing.TB) (*Cage, string) { return nil, "a memory limit needs Linux" }

// Add is not possible here.
func (*Cage) Add(*Process) error { return errors.ErrUnsupported }

// Squeeze is not possible here.
func (*Cage) Squeeze(int64) error { return errors.ErrUnsupported }
