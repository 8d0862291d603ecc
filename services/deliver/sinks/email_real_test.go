package sinks

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

// A mail server that nobody here wrote takes the mail, over STARTTLS and with a
// password, and has it whole.
// covers: OPC-7, OPC-25, F-31
func TestEmailReal(t *testing.T) {
	program := receiver(t, "smtp-receiver")
	folder := t.TempDir()
	cert, key := filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	newServerCertificate(t, cert, key)
	mails := filepath.Join(folder, "mails")
	must(t, os.Mkdir(mails, 0o700))
	cmd := exec.CommandContext(t.Context(), program, cert, key, mails, mailUser, mailPassword)
	input, err := cmd.StdinPipe()
	must(t, err)
	output, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() {
		must(t, input.Close())
		_, _ = io.Copy(io.Discard, output)
		must(t, cmd.Wait())
	}()
	port, err := bufio.NewReader(output).ReadString('\n')
	must(t, err)

	cfg := defaultEmail()
	cfg.Address = "127.0.0.1:" + strings.TrimSpace(port)
	cfg.From, cfg.To = "Pènstock <penstock@example.org>", []string{"nobody@example.org", "soc@example.org"}
	cfg.Username, cfg.Password = mailUser, config.NewSecret(mailPassword)
	cfg.TLS.CAFile = cert
	cfg.Select.OPSWAT = []OPSWATLogType{"exempt_all"}
	cfg.GroupWait = 0
	for _, auth := range []EmailAuth{EmailAuthPlain, EmailAuthLogin} {
		cfg.Auth = auth
		if findings := cfg.Probe(t.Context()); len(findings) != 3 || findings[0].Level != "ok" || findings[1].Level != "warn" || findings[2].Level != "ok" {
			t.Errorf("%s: findings %+v", auth, findings)
		}
		s := openMail(t, cfg)
		e := event(1, `{"log_type":"exempt_all","device_name":"höst-17","details":"Device was exempted\r\n.\r\nby Admin One 24 hour(s)"}`)
		e.Type, e.Source = "opswat.device.exempt_all", "opswat"
		mustDeliver(t, s, batchOfEvents(s, e))
		must(t, s.Close())
	}
	files, _ := filepath.Glob(filepath.Join(mails, "*.eml"))
	if len(files) != 2 {
		t.Fatalf("%d mails", len(files))
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		must(t, err)
		header, text := readMail(t, raw)
		if header.Get("X-From") != "penstock@example.org" || header.Get("X-To") != "soc@example.org" || subjectOf(t, header) != "penstock: 1 selected events from opswat" {
			t.Errorf("header %v", header)
		}
		if !strings.Contains(text, "2026-01-05T07:44:54.120Z  opswat.device.exempt_all  höst-17\n    Device was exempted . by Admin One 24 hour(s)\n") {
			t.Errorf("text %s", text)
		}
	}

	cfg.Password = config.NewSecret("another")
	s := openMail(t, cfg)
	defer s.Close()
	e := event(2, `{}`)
	e.Type = "opswat.device.exempt_all"
	if res := s.Deliver(t.Context(), batchOfEvents(s, e)); res.Verdict != Stop || fault.CodeOf(res.Err) != "deliver.email_denied" {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
}

// batchOfEvents encodes events as the batcher does.
func batchOfEvents(s Sink, events ...*Event) Batch {
	var data []byte
	var items []Item
	for _, e := range events {
		start := len(data)
		data = s.Append(data, e)
		items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
	}
	return NewBatch(data, items)
}

// newServerCertificate writes a self-signed certificate of 127.0.0.1 and its key.
func newServerCertificate(t *testing.T, certPath, keyPath string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mail.example.org"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	must(t, os.WriteFile(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
}
