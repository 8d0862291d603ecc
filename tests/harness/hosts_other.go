//go:build !linux

package harness

import (
	"errors"
	"os"
)

func newNamespace() (chan func(), error) { return nil, errors.ErrUnsupported }

func openTUN([4]byte) (*os.File, error) { return nil, errors.ErrUnsupported }

func lockFile(*os.File) bool { return true }
