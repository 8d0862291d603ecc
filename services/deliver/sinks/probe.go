package sinks

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/penstock/penstock/services/internal/probe"
)

// Probe implements [probe.Prober]: one HEAD request with the headers of a delivery.
// A server need not know HEAD; but one that asks who we are says so first.
func (c HTTPConfig) Probe(ctx context.Context) []probe.Finding {
	opened, err := openHTTP(ctx, c, Deps{Destination: "doctor"})
	if err != nil {
		return []probe.Finding{probe.Error("open", c.URL, err)}
	}
	s, _ := opened.(*httpSink)
	defer s.Close() //nolint:errcheck // frees connections
	var all []probe.Finding
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: s.url})
	if err == nil && proxy == nil {
		tlsConfig, err := c.TLS.client("doctor")
		if err != nil {
			return []probe.Finding{probe.Error("tls", c.URL, err)}
		}
		f := probe.Reach(ctx, s.url, tlsConfig)
		if all = append(all, f); f.Level == probe.Fail {
			return all
		}
	}
	if c.TLS.CertFile != "" {
		all = append(all, probe.Certificate(c.TLS.CertFile, c.TLS.KeyFile))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, errHTTPSlow)
	defer cancel()
	shown := (&url.URL{Scheme: s.url.Scheme, Host: s.url.Host, Path: s.url.Path}).String()
	request := (&http.Request{Method: http.MethodHead, URL: s.url, Host: s.url.Host, Header: s.header.Clone()}).WithContext(ctx)
	request.Header.Del("Content-Type")
	answer, err := s.transport.RoundTrip(request)
	if err != nil {
		return append(all, probe.Error("HEAD", shown, s.broken(ctx, call{method: http.MethodHead, url: s.url}, err).Err))
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, mostAnswer))
	_ = answer.Body.Close()
	said := "the server answers HEAD with " + strconv.Itoa(answer.StatusCode)
	switch code := answer.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusProxyAuthRequired:
		f := probe.Bad("HEAD", shown, said, errHTTPDenied.Fix)
		f.Code = errHTTPDenied.Code
		return append(all, f)
	case code == http.StatusNotFound:
		return append(all, probe.Doubt("HEAD", shown, said, "check the path of url; some servers know no HEAD"))
	case code >= 500 && code != http.StatusNotImplemented:
		return append(all, probe.Doubt("HEAD", shown, said, errHTTPBusy.Fix))
	case code >= 300 && code < 400:
		return append(all, probe.Doubt("HEAD", shown, said, "use the address that it sends to: deliveries follow no redirects"))
	case code >= 400:
		return append(all, probe.Good("HEAD", shown, said+", which proves the way there; credentials show with the first delivery"))
	}
	return append(all, probe.Good("HEAD", shown, said))
}

// Probe implements [probe.Prober]: whether files can be made where the path says, or
// in the nearest folder above it that is there.
func (c FileConfig) Probe(context.Context) []probe.Finding {
	folder := filepath.Dir(c.Path)
	if before, _, named := strings.Cut(c.Path, "{destination}"); named {
		folder = filepath.Dir(before)
	}
	for {
		info, err := os.Stat(folder)
		if err == nil && !info.IsDir() {
			return []probe.Finding{probe.Bad("folder", folder, "it is a file", "choose another path")}
		}
		if err == nil || folder == filepath.Dir(folder) {
			break
		}
		folder = filepath.Dir(folder)
	}
	f, err := os.CreateTemp(folder, ".penstock-doctor-*")
	if err != nil {
		return []probe.Finding{probe.Error("folder", folder, errFileDenied.New(err, "make a file in %s", folder))}
	}
	_, err = f.WriteString("x")
	if syncErr := f.Sync(); err == nil {
		err = syncErr
	}
	_ = f.Close()
	_ = os.Remove(f.Name())
	if err != nil {
		return []probe.Finding{probe.Bad("folder", folder, err.Error(), "make room on the disk, or choose another path")}
	}
	return []probe.Finding{probe.Good("folder", folder, "files can be written")}
}

// Probe implements [probe.Prober].
func (c StdoutConfig) Probe(context.Context) []probe.Finding {
	return []probe.Finding{probe.Good("stdout", "", "")}
}
