//go:build !unix

package topology

import (
	"os"
	"path/filepath"
)

// lockDir cannot keep a second server out on this system; the file is a marker.
func lockDir(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
}
