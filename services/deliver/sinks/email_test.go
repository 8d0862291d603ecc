package sinks

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/http/httptest"
	"net/mail"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
)

func init() { harnesses["email"] = emailWorld }

const (
	mailUser     = "penstock"
	mailPassword = "m4il-p4ssword"
)

// postOffice is a real SMTP server that keeps what it took.
type postOffice struct {
	server *smtp.Server
	ended  chan struct{}
	cert   tls.Certificate
	ca     string

	mu    sync.Mutex
	mails []posted
	tried int
	// What it answers in place of yes; nil is yes.
	auth, from, data error
	rcpt             map[string]error
	hang             chan struct{}
	cut              bool
}

type posted struct {
	from, user string
	to         []string
	secure     bool
	raw        []byte
}

// opened makes a post office with STARTTLS, behind TLS with implicit.
func opened(t *testing.T, implicit bool) *postOffice {
	t.Helper()
	lender := newFarSide(true)
	o := &postOffice{cert: lender.TLS.Certificates[0], ca: lender.trust(t), rcpt: map[string]error{}}
	lender.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	if implicit {
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{o.cert}})
	}
	o.serve(l)
	o.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{o.cert}}
	o.server.Addr = l.Addr().String()
	return o
}

func (o *postOffice) serve(l net.Listener) {
	o.server = smtp.NewServer(o)
	o.server.ErrorLog = log.New(io.Discard, "", 0)
	o.server.Domain = "mail.example.org"
	o.ended = make(chan struct{})
	go func() {
		defer close(o.ended)
		_ = o.server.Serve(l)
	}()
}

func (o *postOffice) close() {
	_ = o.server.Close()
	<-o.ended
}

// set changes what it answers and returns what undoes that.
func (o *postOffice) set(f func()) func() {
	o.mu.Lock()
	defer o.mu.Unlock()
	auth, from, data, rcpt, hang, cut := o.auth, o.from, o.data, o.rcpt, o.hang, o.cut
	f()
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.auth, o.from, o.data, o.rcpt, o.hang, o.cut = auth, from, data, rcpt, hang, cut
	}
}

func (o *postOffice) taken() []posted {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]posted(nil), o.mails...)
}

// NewSession implements smtp.Backend.
func (o *postOffice) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &counter{office: o, conn: c}, nil
}

// counter serves one caller.
type counter struct {
	office *postOffice
	conn   *smtp.Conn
	posted
}

func (c *counter) Reset()        { c.from, c.to = "", nil }
func (c *counter) Logout() error { return nil }

func (c *counter) AuthMechanisms() []string { return []string{"PLAIN", "LOGIN", "CRAM-MD5"} }

func (c *counter) check(user, password string) error {
	c.office.mu.Lock()
	defer c.office.mu.Unlock()
	if c.office.auth != nil {
		return c.office.auth
	}
	if user != mailUser || password != mailPassword {
		return smtp.ErrAuthFailed
	}
	c.user = user
	return nil
}

func (c *counter) Auth(mechanism string) (sasl.Server, error) {
	switch mechanism {
	case "PLAIN":
		return sasl.NewPlainServer(func(_, user, password string) error { return c.check(user, password) }), nil
	case "LOGIN":
		return &loginServer{check: c.check}, nil
	case "CRAM-MD5":
		return &cramServer{check: c.check}, nil
	}
	return nil, smtp.ErrAuthUnknownMechanism
}

// loginServer asks for both in turn.
type loginServer struct {
	check func(user, password string) error
	step  int
	user  string
}

func (l *loginServer) Next(response []byte) ([]byte, bool, error) {
	l.step++
	switch l.step {
	case 1:
		return []byte("Username:"), false, nil
	case 2:
		l.user = string(response)
		return []byte("Password:"), false, nil
	}
	return nil, true, l.check(l.user, string(response))
}

// cramServer checks a digest of the challenge. Source: RFC 2195.
type cramServer struct {
	check func(user, password string) error
	asked bool
}

func (c *cramServer) Next(response []byte) ([]byte, bool, error) {
	const challenge = "<1896.697170952@mail.example.org>"
	if !c.asked {
		c.asked = true
		return []byte(challenge), false, nil
	}
	user, digest, _ := strings.Cut(string(response), " ")
	h := hmac.New(md5.New, []byte(mailPassword))
	h.Write([]byte(challenge))
	if digest != hex.EncodeToString(h.Sum(nil)) {
		return nil, true, smtp.ErrAuthFailed
	}
	return nil, true, c.check(user, mailPassword)
}

func (c *counter) Mail(from string, _ *smtp.MailOptions) error {
	o := c.office
	o.mu.Lock()
	o.tried++
	err, hang := o.from, o.hang
	o.mu.Unlock()
	if hang != nil {
		<-hang
	}
	c.from = from
	return err
}

func (c *counter) Rcpt(to string, _ *smtp.RcptOptions) error {
	c.office.mu.Lock()
	defer c.office.mu.Unlock()
	if err := c.office.rcpt[to]; err != nil {
		return err
	}
	c.to = append(c.to, to)
	return nil
}

func (c *counter) Data(r io.Reader) error {
	o := c.office
	o.mu.Lock()
	err, cut := o.data, o.cut
	o.mu.Unlock()
	if cut {
		_, _ = io.ReadFull(r, make([]byte, 10_000))
		return c.conn.Conn().Close()
	}
	raw, readErr := io.ReadAll(r)
	if err != nil || readErr != nil {
		return errors.Join(err, readErr)
	}
	_, c.secure = c.conn.TLSConnectionState()
	c.raw = raw
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mails = append(o.mails, c.posted)
	return nil
}

func reply(code int, enhanced smtp.EnhancedCode, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: enhanced, Message: text}
}

// read takes a mail apart as a mail program does.
func read(t testing.TB, raw []byte) (mail.Header, string) {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	var body io.Reader = m.Body
	if m.Header.Get("Content-Transfer-Encoding") == "quoted-printable" {
		body = quotedprintable.NewReader(body)
	}
	text, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return m.Header, strings.ReplaceAll(string(text), "\r\n", "\n")
}

func subject(t testing.TB, h mail.Header) string {
	t.Helper()
	s, err := new(mime.WordDecoder).DecodeHeader(h.Get("Subject"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func emailTo(o *postOffice) EmailConfig {
	cfg := defaultEmail()
	cfg.Address, cfg.From, cfg.To = o.server.Addr, "penstock <penstock@example.org>", []string{"soc@example.org"}
	cfg.Username, cfg.Password = mailUser, config.NewSecret(mailPassword)
	cfg.TLS.CAFile = o.ca
	cfg.Select.Types = []string{">"}
	return cfg
}

func openMail(t testing.TB, cfg EmailConfig) *emailSink {
	t.Helper()
	s, err := openEmail(t.Context(), cfg, Deps{Destination: "mail"})
	if err != nil {
		t.Fatal(err)
	}
	return s.(*emailSink)
}

var (
	labelsOf = regexp.MustCompile(`(?m)^source: (.*), account: (.*), region: (.*)$`)
	entryOf  = regexp.MustCompile(`(?m)^(\S+Z)  (\S+)(  (.*))?\n    (\d+)$`)
)

// emailWorld mails at once and lists all. What it shows of an event is put back into
// the form of the envelope; the id is made of the number, as everywhere in the suite.
func emailWorld(t *testing.T) *world {
	o := opened(t, false)
	cfg := emailTo(o)
	cfg.GroupBy = []EmailGroup{EmailBySource, EmailByAccount, EmailByRegion}
	cfg.GroupWait, cfg.GroupInterval, cfg.RepeatInterval = 0, 0, 0
	cfg.MaxPerHour, cfg.MaxListed = 3600, 10_000
	cfg.Who, cfg.Details = []string{"s"}, []string{"n"}
	cfg.Timeout = 500 * time.Millisecond
	open := func(cfg EmailConfig) *emailSink {
		s := openMail(t, cfg)
		s.patience = 0
		return s
	}
	return &world{
		sink: open(cfg),
		received: func() []string {
			var lines []string
			for _, m := range o.taken() {
				_, text := read(t, m.raw)
				labels := labelsOf.FindStringSubmatch(text)
				for _, e := range entryOf.FindAllStringSubmatch(text, -1) {
					at, err := time.Parse(time.RFC3339Nano, e[1])
					must(t, err)
					rest := ""
					if e[4] != "" {
						rest = fmt.Sprintf(`,"s":%q`, e[4])
					}
					lines = append(lines, fmt.Sprintf(`{"id":%q,"type":%q,"time":%q,"source":%q,"account":%q,"region":%q,"event":{"n":%s%s}}`,
						messages.NewID([]byte(e[5])), e[2], at.Format(time.RFC3339Nano), labels[1], labels[2], labels[3], e[5], rest))
				}
			}
			return lines
		},
		secrets: []string{mailPassword},
		outage: func() func() {
			return o.set(func() { o.from = reply(451, smtp.EnhancedCode{4, 3, 0}, "not now, "+mailPassword) })
		},
		denial: func() func() {
			return o.set(func() { o.auth = reply(535, smtp.EnhancedCode{5, 7, 8}, "not you, "+mailPassword) })
		},
		hang: func() func() {
			release := make(chan struct{})
			heal := o.set(func() { o.hang = release })
			return func() { heal(); close(release) }
		},
		hangs: 5 * time.Second,
		cut:   func() func() { return o.set(func() { o.cut = true }) },
		untrusted: func() (Sink, func() bool) {
			cfg := cfg
			cfg.TLS.CAFile = ""
			return open(cfg), func() bool { return len(o.taken()) > 0 }
		},
		cannot: map[string]string{
			"throttle": "SMTP has no word for when to come again",
			"partial":  "a mail is taken or refused as a whole; see TestEmailRefused",
		},
		done: o.close,
	}
}

var _ = []any{context.Background, httptest.NewServer, slog.New, synctest.Wait, fault.CodeOf, golden.Check, subject}
