// Package httpserver holds what the listeners of sources and destinations share: TLS
// whose files may change, addresses behind proxies, and bounds on requests.
package httpserver

import (
	"net/http"
	"net/netip"
	"strings"
)

// Loopback tells whether a host is this machine alone.
func Loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// Network reads an address, e.g. 192.0.2.1, or a network, e.g. 192.0.2.0/24.
func Network(s string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

// Networks reads those of a list that are well formed.
func Networks(list []string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		if p, err := Network(s); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// Within tells whether an address is in one of the networks.
func Within(list []netip.Prefix, ip netip.Addr) bool {
	for _, p := range list {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// AddressOf is where a request comes from. A trusted proxy is believed the last
// address that it adds to X-Forwarded-For, and so on from right to left. What
// cannot be read is not believed.
func AddressOf(r *http.Request, proxies []netip.Prefix) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	ip := at.Addr().Unmap().WithZone("")
	if len(proxies) == 0 || !Within(proxies, ip) {
		return ip
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			return ip
		}
		if ip = hop.Unmap().WithZone(""); !Within(proxies, ip) {
			return ip
		}
	}
	return ip
}
