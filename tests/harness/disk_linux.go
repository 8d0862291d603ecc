package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a small file system of its own, to be filled up and made read-only. It is
// mounted nowhere: only the test process holds it, so nothing is left of it when that
// ends, however it ends.
type Disk struct {
	t  testing.TB
	fd int
	// Dir is its top. Other processes find it there for as long as the test lives.
	Dir string
}

// NewDisk makes a file system of size bytes in memory. Where that is not allowed it
// returns nil and the reason.
func NewDisk(t testing.TB, size int64) (*Disk, string) {
	t.Helper()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Sprintf("a file system of its own needs root: %v", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := errors.Join(unix.FsconfigSetString(fs, "size", strconv.FormatInt(size, 10)), unix.FsconfigCreate(fs)); err != nil {
		return nil, fmt.Sprintf("make a file system in memory: %v", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Sprintf("open a file system in memory: %v", err)
	}
	d := &Disk{t: t, fd: fd, Dir: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return d, ""
}

// Full takes all room that is left. Free gives it back.
func (d *Disk) Full() {
	d.t.Helper()
	path := filepath.Join(d.Dir, "ballast")
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		d.t.Errorf("fill the disk: %v", err)
		return
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		d.t.Errorf("fill the disk: %v", err)
		return
	}
	// Others write at the same time: large steps first, then what is left of them.
	for at, step := st.Size, int64(64<<20); step >= 4096; {
		if unix.Fallocate(fd, 0, at, step) == nil {
			at += step
			continue
		}
		step /= 2
	}
}

// Free gives back what Full took.
func (d *Disk) Free() {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.Dir, "ballast")); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.t.Errorf("give room on the disk: %v", err)
	}
}

// ReadOnly makes the file system one that can only be read, or writable again. It
// returns an error while a file is open for writing.
func (d *Disk) ReadOnly(on bool) error {
	fs, err := unix.Fspick(d.fd, "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("pick the file system: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	flag := "rw"
	if on {
		flag = "ro"
	}
	if err := unix.FsconfigSetFlag(fs, flag); err != nil {
		return fmt.Errorf("set %s: %w", flag, err)
	}
	return unix.FsconfigReconfigure(fs)
}

// Cage is a memory limit around processes: a control group, version 1 or 2.
type Cage struct {
	dir, limit, usage string
}

// NewCage makes a control group without a limit. Where that is not allowed it returns
// nil and the reason.
func NewCage(t testing.TB) (*Cage, string) {
	t.Helper()
	name := fmt.Sprintf("penstock-test-%d-%s", os.Getpid(), strings.ReplaceAll(filepath.Base(t.TempDir()), "/", "-"))
	for _, v := range []Cage{
		{"/sys/fs/cgroup/memory/", "memory.limit_in_bytes", "memory.usage_in_bytes"},
		{"/sys/fs/cgroup/", "memory.max", "memory.current"},
	} {
		if _, err := os.Stat(v.dir + "cgroup.procs"); err != nil {
			continue
		}
		c := &Cage{filepath.Join(v.dir, name), v.limit, v.usage}
		if err := os.Mkdir(c.dir, 0o755); err != nil { //nolint:gosec // the kernel's own folder
			return nil, fmt.Sprintf("a memory limit needs root: %v", err)
		}
		// Removed once the processes in it have ended: the test's end does that later.
		t.Cleanup(func() { _ = os.Remove(c.dir) })
		if _, err := os.Stat(filepath.Join(c.dir, c.limit)); err != nil {
			continue
		}
		return c, ""
	}
	return nil, "there is no control group for memory"
}

// Add puts a process into the group: what it allocates from now on is counted.
func (c *Cage) Add(p *Process) error {
	return os.WriteFile(filepath.Join(c.dir, "cgroup.procs"), []byte(strconv.Itoa(p.PID())), 0o600)
}

// Squeeze leaves the processes in the group so much more memory than they have now,
// in bytes; below 0 it ends the limit. Who needs more is killed by the kernel.
func (c *Cage) Squeeze(more int64) error {
	limit := int64(-1)
	if more >= 0 {
		text, err := os.ReadFile(filepath.Join(c.dir, c.usage))
		if err != nil {
			return err
		}
		used, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return err
		}
		limit = used + more
	}
	text := strconv.FormatInt(limit, 10)
	if limit < 0 && c.limit == "memory.max" {
		text = "max"
	}
	return os.WriteFile(filepath.Join(c.dir, c.limit), []byte(text), 0o600)
}
