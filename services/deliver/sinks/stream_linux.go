package sinks

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// unacknowledged asks the kernel how many bytes that were written to a socket the far
// side's kernel has not acknowledged, and whether the connection is still whole in
// both directions. Source: tcp(7), SIOCOUTQ and TCP_INFO.
func unacknowledged(raw syscall.RawConn) (bytes int, whole bool, err error) {
	const established = 1
	var info *unix.TCPInfo
	var asked error
	err = raw.Control(func(fd uintptr) {
		if bytes, asked = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); asked == nil {
			info, asked = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		}
	})
	if err == nil {
		err = asked
	}
	if err != nil {
		return 0, false, err
	}
	return bytes, info.State == established, nil
}
