package main

import (
	"log/slog"
	"net"
	"os"
	"strings"
)

// notify tells systemd how this process is, e.g. READY=1: it then starts what comes
// after, and shows the status. Without systemd, or with a service that is not of
// Type=notify, it does nothing. See sd_notify(3).
func notify(log *slog.Logger, lines ...string) {
	at := os.Getenv("NOTIFY_SOCKET")
	if at == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: at, Net: "unixgram"}) // "@..." is an abstract one here, too
	if err == nil {
		_, err = conn.Write([]byte(strings.Join(lines, "\n")))
		_ = conn.Close()
	}
	if err != nil {
		log.Warn("systemd could not be told", "lines", lines, "err", err)
	}
}
