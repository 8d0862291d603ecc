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
	"mime"
	"mime/quotedprintable"
	"net"
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
	server   *smtp.Server
	listener net.Listener
	ended    chan struct{}
	cert     tls.Certificate
	ca       string

	mu    sync.Mutex
	mails []smtpPosted
	tried int
	// What it answers in place of yes; nil is yes.
	auth, from, data error
	rcpt             map[string]error
	hang             chan struct{}
	cut              bool
}

type smtpPosted struct {
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
	o.server, o.listener = smtp.NewServer(o), l
	o.server.ErrorLog = log.New(io.Discard, "", 0)
	o.server.Domain = "mail.example.org"
	o.ended = make(chan struct{})
	go func() {
		defer close(o.ended)
		_ = o.server.Serve(l)
	}()
}

func (o *postOffice) close() {
	_ = o.listener.Close() // which Close of the server may not know yet
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

func (o *postOffice) taken() []smtpPosted {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]smtpPosted(nil), o.mails...)
}

func (o *postOffice) attempts() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tried
}

// NewSession implements smtp.Backend.
func (o *postOffice) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &smtpCounter{office: o, conn: c}, nil
}

// smtpCounter serves one caller.
type smtpCounter struct {
	office *postOffice
	conn   *smtp.Conn
	smtpPosted
}

func (c *smtpCounter) Reset()        { c.from, c.to = "", nil }
func (c *smtpCounter) Logout() error { return nil }

func (c *smtpCounter) AuthMechanisms() []string { return []string{"PLAIN", "LOGIN", "CRAM-MD5"} }

func (c *smtpCounter) check(user, password string) error {
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

func (c *smtpCounter) Auth(mechanism string) (sasl.Server, error) {
	switch mechanism {
	case "PLAIN":
		return sasl.NewPlainServer(func(_, user, password string) error { return c.check(user, password) }), nil
	case "LOGIN":
		return &smtpLoginServer{check: c.check}, nil
	case "CRAM-MD5":
		return &smtpCramServer{check: c.check}, nil
	}
	return nil, smtp.ErrAuthUnknownMechanism
}

// smtpLoginServer asks for both in turn.
type smtpLoginServer struct {
	check func(user, password string) error
	step  int
	user  string
}

func (l *smtpLoginServer) Next(response []byte) ([]byte, bool, error) {
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

// smtpCramServer checks a digest of the challenge. Source: RFC 2195.
type smtpCramServer struct {
	check func(user, password string) error
	asked bool
}

func (c *smtpCramServer) Next(response []byte) ([]byte, bool, error) {
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

func (c *smtpCounter) Mail(from string, _ *smtp.MailOptions) error {
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

func (c *smtpCounter) Rcpt(to string, _ *smtp.RcptOptions) error {
	c.office.mu.Lock()
	defer c.office.mu.Unlock()
	if err := c.office.rcpt[to]; err != nil {
		return err
	}
	c.to = append(c.to, to)
	return nil
}

func (c *smtpCounter) Data(r io.Reader) error {
	o := c.office
	o.mu.Lock()
	err, cut := o.data, o.cut
	o.mu.Unlock()
	if cut {
		_, _ = io.ReadFull(r, make([]byte, 10_000))
		return c.conn.Conn().Close()
	}
	raw, readErr := io.ReadAll(r)
	if err != nil {
		return err // as it is: the server looks for its own type
	}
	if readErr != nil {
		return readErr
	}
	_, c.secure = c.conn.TLSConnectionState()
	c.raw = raw
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mails = append(o.mails, c.smtpPosted)
	return nil
}

func smtpReply(code int, enhanced smtp.EnhancedCode, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: enhanced, Message: text}
}

// readMail takes a mail apart as a mail program does.
func readMail(t testing.TB, raw []byte) (mail.Header, string) {
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

func subjectOf(t testing.TB, h mail.Header) string {
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
	cfg.Timeout = 2 * time.Second
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
				_, text := readMail(t, m.raw)
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
			return o.set(func() { o.from = smtpReply(451, smtp.EnhancedCode{4, 3, 0}, "not now, "+mailPassword) })
		},
		denial: func() func() {
			return o.set(func() { o.auth = smtpReply(535, smtp.EnhancedCode{5, 7, 8}, "not you, "+mailPassword) })
		},
		hang: func() func() {
			release := make(chan struct{})
			heal := o.set(func() { o.hang = release })
			return func() { heal(); close(release) }
		},
		hangs: 15 * time.Second,
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

// mailed puts events of one type and source into a batch.
func mailed(s Sink, kind, source string, first int, docs ...string) Batch {
	var events []*Event
	for i, doc := range docs {
		e := event(first+i, doc)
		e.Type, e.Source = kind, source
		e.Time += int64(first+i) * int64(time.Second)
		events = append(events, e)
	}
	return batchOfEvents(s, events...)
}

// letters are the mails that s would send for what it holds, but for their way.
func letters(t testing.TB, s *emailSink, at time.Time, batches ...Batch) []byte {
	t.Helper()
	for _, b := range batches {
		ticket := &mailTicket{verdicts: make([]Verdict, b.Len()), done: make(chan struct{})}
		for i := range b.Len() {
			if b.Event(i)[0] == mailSelected {
				s.take(ticket, i, b.ID(i), readNote(b.Event(i)), at)
			}
		}
	}
	var out []byte
	for {
		l, _ := s.next(at.Add(24 * time.Hour))
		if l == nil {
			return out
		}
		l.created = at
		out = append(out, s.message(l)...)
		out = append(out, "=====\r\n"...)
		s.accepted(l, at)
	}
}

func TestEmailText(t *testing.T) {
	at := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	exempt := `{"log_type":"exempt_all","device_name":"host-17","type":"Device","details":"Device host-17 was exempted by Admin One(admin1@example.org)24 hour(s)"}`
	config := `{"type":"Account","log_type":"config","admin_name":"Admin One","admin_email":"admin1@example.org","details":"Administrator Admin One changed Settings - Integrations "}`
	tests := []struct {
		name   string
		change func(*EmailConfig)
		mails  func(s *emailSink) []byte
	}{
		// covers: F-31, F-2, OPC-7, OPC-25, OPC-26
		{"opswat", nil, func(s *emailSink) []byte {
			return letters(t, s, at, mailed(s, "opswat.device.exempt_all", "opswat", 0, exempt, exempt, exempt), mailed(s, "opswat.account.config", "opswat", 9, config),
				mailed(s, "opswat.device.unseen", "opswat", 12, exempt))
		}},
		{"more_than_are_listed", func(c *EmailConfig) { c.MaxListed = 2 }, func(s *emailSink) []byte {
			return letters(t, s, at, mailed(s, "opswat.account.config", "opswat", 0, config, `{"details":"b"}`, `{"details":"c"}`, config, `{"details":"d"}`))
		}},
		{"repeats", nil, func(s *emailSink) []byte {
			out := letters(t, s, at, mailed(s, "opswat.account.config", "opswat", 0, config))
			return append(out, letters(t, s, at.Add(time.Hour), mailed(s, "opswat.account.config", "opswat", 1, config, config, `{"details":"b"}`))...)
		}},
		{"several_groups_in_one", func(c *EmailConfig) {
			c.MaxPerHour, c.GroupBy = 1, []EmailGroup{EmailBySource, EmailByType, EmailByAccount}
		}, func(s *emailSink) []byte {
			return letters(t, s, at, mailed(s, "opswat.account.config", "opswat", 0, config), mailed(s, "voiso.app_login.incorrect_password", "voiso", 1, `{"params":{"user":"a@example.org"},"event":"incorrect_password"}`))
		}},
		{"text_that_wants_to_be_more", func(c *EmailConfig) { c.GroupBy = nil }, func(s *emailSink) []byte {
			return letters(t, s, at, mailed(s, "opswat.account.config", "evil\r\nBcc: all@example.org", 0,
				`{"admin_name":"x\r\nSubject: y\r\n\r\nbody","details":"\u001b[31mred\u001b[0m \u202egnp.exe\u2028.\r\n.\r\nQUIT\u0000"}`,
				`{"admin_name":"Zoë ＡＢ 日本","details":"`+strings.Repeat("long ", 100)+`"}`))
		}},
		{"nothing_known", nil, func(s *emailSink) []byte {
			e := &Event{ID: messages.NewID(nil), Type: "opswat.account.config"}
			return letters(t, s, at, batchOfEvents(s, e))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := defaultEmail()
			cfg.Address, cfg.From, cfg.To = "smtp.example.org:587", "Pènstock <penstock@example.org>", []string{"soc@example.org", "Ann <ann@example.org>"}
			cfg.Select = EmailSelect{OPSWAT: []OPSWATLogType{"exempt_all", "config"}, Types: []string{"voiso.app_login.*"}}
			if tt.change != nil {
				tt.change(&cfg)
			}
			s := openMail(t, cfg)
			golden.Check(t, "testdata/email/"+tt.name+".eml", tt.mails(s))
		})
	}
}

// covers: OPC-15, OPC-17, OPC-20, VOI-22, VOI-32
func TestEmailSelects(t *testing.T) {
	names := OPSWATLogType("").Values()
	if len(names) != 21 {
		t.Errorf("%d log types", len(names))
	}
	cfg := defaultEmail()
	cfg.Address, cfg.From, cfg.To = "smtp.example.org:587", "a@example.org", []string{"b@example.org"}
	cfg.Select.Types = []string{"voiso.app_login.incorrect_password", "aws.>"}
	none := openMail(t, cfg)
	for _, name := range names {
		cfg.Select.OPSWAT = append(cfg.Select.OPSWAT, OPSWATLogType(name))
	}
	all := openMail(t, cfg)
	for _, name := range names {
		kind := opswatLogTypes[OPSWATLogType(name)]
		if !all.selects("opswat."+kind+"."+name) || none.selects("opswat."+kind+"."+name) {
			t.Errorf("%s is not selected, or without being named", name)
		}
	}
	for kind, want := range map[string]bool{
		"it.access.device.added": true, "device.added": true, "voiso.app_login.incorrect_password": true, "aws.guardduty.finding": true,
		"opswat.account.added": false, "opswat.device.config": false, "opswat.device.added.x": false, "opswat.mydevice.added": false, "added": false,
		"voiso.app_login.deleted_user": false, "voiso.app_login.successful_login": false, "aws": false, "opswat.device.deleted_use": false, "": false,
	} {
		if all.selects(kind) != want {
			t.Errorf("%q: selected %v", kind, !want)
		}
	}
}

// Each way to a mail server that somebody may have.
// covers: OPC-25, F-31
func TestEmailWays(t *testing.T) {
	for _, tt := range []struct {
		name     string
		implicit bool
		change   func(*EmailConfig)
		user     string
	}{
		{"starttls, plain", false, nil, mailUser},
		{"starttls, login", false, func(c *EmailConfig) { c.Auth = EmailAuthLogin }, mailUser},
		{"starttls, cram-md5", false, func(c *EmailConfig) { c.Auth = EmailAuthCRAMMD5 }, mailUser},
		{"starttls, nobody", false, func(c *EmailConfig) { c.Username, c.Password = "", config.Secret{} }, ""},
		{"implicit, plain", true, func(c *EmailConfig) { c.Encryption = EmailImplicit }, mailUser},
		{"no encryption, nobody", false, func(c *EmailConfig) { c.Encryption, c.Username, c.Password = EmailPlain, "", config.Secret{} }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := opened(t, tt.implicit)
			defer o.close()
			cfg := emailTo(o)
			cfg.GroupWait = 0
			if tt.change != nil {
				tt.change(&cfg)
			}
			for _, f := range cfg.Probe(t.Context()) {
				if f.Level != "ok" {
					t.Errorf("finding %+v", f)
				}
			}
			if n := len(o.taken()); n != 0 {
				t.Errorf("the doctor sent %d mails", n)
			}
			s := openMail(t, cfg)
			defer s.Close()
			mustDeliver(t, s, batchOf(s, 0, `{"details":"x"}`))
			mails := o.taken()
			if len(mails) != 1 || mails[0].user != tt.user || mails[0].secure != (cfg.Encryption != EmailPlain) || mails[0].from != "penstock@example.org" {
				t.Errorf("mails %+v", mails)
			}
		})
	}
}

// What the server says decides what becomes of the events.
// covers: OPC-24
func TestEmailAnswers(t *testing.T) {
	busy, no := smtpReply(450, smtp.EnhancedCode{4, 2, 0}, "later"), smtpReply(550, smtp.EnhancedCode{5, 1, 1}, "never")
	tests := []struct {
		name    string
		change  func(*EmailConfig)
		office  func(*postOffice)
		verdict Verdict
		code    string
		mails   int
	}{
		{"wrong password", func(c *EmailConfig) { c.Password = config.NewSecret("wrong") }, nil, Stop, "deliver.email_denied", 0},
		{"login out of order", nil, func(o *postOffice) { o.auth = smtpReply(454, smtp.EnhancedCode{4, 7, 0}, "later") }, Retry, "deliver.email_busy", 0},
		{"login is not known", nil, func(o *postOffice) {
			o.server.AllowInsecureAuth, o.auth = false, smtpReply(504, smtp.EnhancedCode{5, 5, 4}, "what")
		}, Stop, "deliver.email_denied", 0},
		{"needs a login", func(c *EmailConfig) { c.Username, c.Password = "", config.Secret{} }, func(o *postOffice) { o.from = smtpReply(530, smtp.EnhancedCode{5, 7, 0}, "log in") }, Stop, "deliver.email_sender_refused", 0},
		{"sender unknown", nil, func(o *postOffice) { o.from = no }, Stop, "deliver.email_sender_refused", 0},
		{"sender put off", nil, func(o *postOffice) { o.from = busy }, Retry, "deliver.email_busy", 0},
		{"one recipient unknown", nil, func(o *postOffice) { o.rcpt["soc@example.org"] = no }, Done, "", 1},
		{"all recipients unknown", nil, func(o *postOffice) { o.rcpt["soc@example.org"], o.rcpt["ann@example.org"] = no, no }, Stop, "deliver.email_recipients_refused", 0},
		{"one recipient put off", nil, func(o *postOffice) { o.rcpt["soc@example.org"] = busy }, Done, "", 1},
		{"all recipients put off", nil, func(o *postOffice) { o.rcpt["soc@example.org"], o.rcpt["ann@example.org"] = busy, busy }, Retry, "deliver.email_busy", 0},
		{"one unknown, one put off", nil, func(o *postOffice) { o.rcpt["soc@example.org"], o.rcpt["ann@example.org"] = busy, no }, Retry, "deliver.email_busy", 0},
		{"mail too large", nil, func(o *postOffice) { o.data = smtpReply(552, smtp.EnhancedCode{5, 3, 4}, "too large") }, Reject, "deliver.email_refused", 0},
		{"a quota of the day is used up", nil, func(o *postOffice) { o.data = smtpReply(550, smtp.EnhancedCode{5, 4, 5}, "quota") }, Retry, "deliver.email_busy", 0},
		{"the mailbox is full", nil, func(o *postOffice) { o.data = smtpReply(552, smtp.EnhancedCode{5, 2, 2}, "full") }, Retry, "deliver.email_busy", 0},
		{"the server takes no mails", nil, func(o *postOffice) { o.data = smtpReply(554, smtp.EnhancedCode{5, 3, 2}, "maintenance") }, Retry, "deliver.email_busy", 0},
		{"the server goes away", nil, func(o *postOffice) { o.rcpt["soc@example.org"] = smtpReply(421, smtp.EnhancedCode{4, 3, 2}, "bye") }, Retry, "deliver.email_busy", 0},
		{"no room", nil, func(o *postOffice) { o.data = smtpReply(452, smtp.EnhancedCode{4, 3, 1}, "disk full") }, Retry, "deliver.email_busy", 0},
		{"the first mail is against a policy", nil, func(o *postOffice) { o.data = smtpReply(554, smtp.EnhancedCode{5, 7, 1}, "DMARC") }, Stop, "deliver.email_sender_refused", 0},
		{"no STARTTLS", nil, func(o *postOffice) { o.server.TLSConfig = nil }, Stop, "deliver.email_setup", 0},
		{"TLS expected at once", func(c *EmailConfig) { c.Encryption = EmailImplicit }, nil, Stop, "deliver.email_setup", 0},
		{"another name", func(c *EmailConfig) { c.TLS.ServerName = "other.example.org" }, nil, Stop, "deliver.email_denied", 0},
		{"nobody there", func(c *EmailConfig) { c.Address = "127.0.0.1:1" }, nil, Retry, "deliver.email_unreachable", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := opened(t, false)
			defer o.close()
			cfg := emailTo(o)
			cfg.To = append(cfg.To, "ann@example.org")
			cfg.GroupWait, cfg.Timeout = 0, 5*time.Second
			if tt.change != nil {
				tt.change(&cfg)
			}
			if tt.office != nil {
				o.set(func() { tt.office(o) })
			}
			s := openMail(t, cfg)
			s.patience = 0
			defer s.Close()
			res := s.Deliver(t.Context(), batchOf(s, 0, `{"details":"x"}`, `{"details":"y"}`))
			if res.Verdict != tt.verdict || tt.code != "" && fault.CodeOf(res.Err) != tt.code || len(o.taken()) != tt.mails {
				t.Errorf("%v, %d mails: %v", res.Verdict, len(o.taken()), res.Err)
			}
			if res.Err != nil && (strings.Contains(res.Err.Error(), mailPassword) || strings.Contains(fmt.Sprint(cfg.Probe(t.Context())), mailPassword)) {
				t.Errorf("it shows the password: %v", res.Err)
			}
		})
	}
}

// Once the server has taken mails, what it refuses is the mail and not its sender. The
// events of other mails are not touched.
func TestEmailRefused(t *testing.T) {
	o := opened(t, false)
	defer o.close()
	cfg := emailTo(o)
	cfg.GroupWait, cfg.GroupInterval = 0, 0
	cfg.Select.Types = []string{"a.>", "x.y"}
	s := openMail(t, cfg)
	defer s.Close()
	mustDeliver(t, s, mailed(s, "a.b", "one", 0, `{"details":"x"}`))
	heal := o.set(func() { o.data = smtpReply(554, smtp.EnhancedCode{5, 7, 1}, "spam") })
	both := []*Event{event(1, `{"details":"y"}`), event(2, `{"details":"z"}`), event(3, `{"details":"x"}`)}
	both[1].Type = "not.selected"
	both[2].Source = "one"
	res := s.Deliver(t.Context(), batchOfEvents(s, both...))
	if res.Verdict != Done || len(res.Items) != 1 || res.Items[0].Index != 0 || res.Items[0].Verdict != Reject || fault.CodeOf(res.Items[0].Err) != "deliver.email_refused" {
		t.Errorf("got %+v", res)
	}
	if res := s.Deliver(t.Context(), mailed(s, "x.y", "two", 4, `{}`)); res.Verdict != Reject {
		t.Errorf("got %+v", res)
	}
	heal()
	mustDeliver(t, s, mailed(s, "a.b", "one", 5, `{"details":"w"}`))
}

// smtpInMemory serves mail over pipes, so that time in a bubble is the bubble's.
type smtpInMemory struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (m *smtpInMemory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

func (m *smtpInMemory) Close() error {
	m.once.Do(func() { close(m.closed) })
	return nil
}

func (m *smtpInMemory) Addr() net.Addr { return &net.TCPAddr{} }

func (m *smtpInMemory) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case m.conns <- there:
		return here, nil
	case <-m.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// inBubble runs a test whose clock is its own.
func inBubble(t *testing.T, change func(*EmailConfig), test func(t *testing.T, o *postOffice, s *emailSink)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := &postOffice{rcpt: map[string]error{}}
		l := &smtpInMemory{conns: make(chan net.Conn), closed: make(chan struct{})}
		o.serve(l)
		cfg := defaultEmail()
		cfg.Address, cfg.From, cfg.To = "localhost:25", "penstock@example.org", []string{"soc@example.org", "ann@example.org"}
		cfg.Encryption, cfg.Select.Types = EmailPlain, []string{"a.b"}
		if change != nil {
			change(&cfg)
		}
		s := openMail(t, cfg)
		s.smtp.dial = l.dial
		defer synctest.Wait()
		defer o.close()
		defer s.Close()
		test(t, o, s)
	})
}

// later delivers beside the test. The channel has the result.
func deliverLater(t *testing.T, s Sink, b Batch) chan Result {
	t.Helper()
	out := make(chan Result, 1)
	go func() { out <- s.Deliver(t.Context(), b) }()
	synctest.Wait()
	return out
}

// answered tells whether a result is there.
func answered(t *testing.T, out chan Result) bool {
	t.Helper()
	synctest.Wait()
	return len(out) > 0
}

func inDetails(words string) string { return fmt.Sprintf(`{"details":%q}`, words) }

// A burst makes one mail, and confirms nothing before it is sent. The next mails of
// the group keep their distance.
// covers: OPC-25, OPC-7
func TestEmailDigest(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, o *postOffice, s *emailSink) {
		var outs []chan Result
		for i := range 100 {
			outs = append(outs, deliverLater(t, s, mailed(s, "a.b", "one", i, inDetails(fmt.Sprint("burst ", i)))))
			time.Sleep(100 * time.Millisecond)
		}
		other := deliverLater(t, s, mailed(s, "a.b", "two", 100, inDetails("x")))
		time.Sleep(19 * time.Second)
		if n := len(o.taken()); n != 0 || answered(t, outs[0]) {
			t.Errorf("%d mails before group_wait", n)
		}
		time.Sleep(2 * time.Second)
		for _, out := range outs {
			if res := <-out; res.Verdict != Done {
				t.Errorf("got %+v", res)
			}
		}
		if n := len(o.taken()); n != 1 || answered(t, other) {
			t.Errorf("%d mails of one group", n)
		}
		header, text := readMail(t, o.taken()[0].raw)
		if subjectOf(t, header) != "penstock: 100 selected events from one" || !strings.Contains(text, "burst 49\n50 more\n") || strings.Contains(text, "burst 50") {
			t.Errorf("%v %s", header, text)
		}
		<-other
		next := deliverLater(t, s, mailed(s, "a.b", "one", 200, inDetails("next")))
		time.Sleep(4 * time.Minute)
		if answered(t, next) {
			t.Error("mailed within group_interval")
		}
		time.Sleep(time.Minute)
		<-next
		if n := len(o.taken()); n != 3 {
			t.Errorf("%d mails", n)
		}
		// The mails of a group refer to the same one, and have each their own id.
		first, _ := readMail(t, o.taken()[0].raw)
		second, _ := readMail(t, o.taken()[1].raw)
		third, _ := readMail(t, o.taken()[2].raw)
		if first.Get("References") != third.Get("References") || first.Get("References") == second.Get("References") || first.Get("Message-ID") == third.Get("Message-ID") {
			t.Errorf("%v %v %v", first, second, third)
		}
	})
}

// What says the same as a mail did brings no other for repeat_interval; then one that
// counts it.
func TestEmailRepeats(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, o *postOffice, s *emailSink) {
		<-deliverLater(t, s, mailed(s, "a.b", "one", 0, inDetails("down"), inDetails("down")))
		first := time.Now()
		for i := range 46 {
			time.Sleep(5 * time.Minute)
			if out := deliverLater(t, s, mailed(s, "a.b", "one", 10+i, inDetails("down"))); !answered(t, out) || (<-out).Verdict != Done {
				t.Fatal("a repeat is held")
			}
		}
		if n := len(o.taken()); n != 1 {
			t.Errorf("%d mails", n)
		}
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		mails := o.taken()
		if len(mails) != 2 {
			t.Fatalf("%d mails after %v", len(mails), time.Since(first))
		}
		header, text := readMail(t, mails[1].raw)
		if subjectOf(t, header) != "penstock: 46 selected events from one" || !strings.Contains(text, "Again, as in an earlier mail:") || !strings.Contains(text, "(46 times, last ") {
			t.Errorf("%s", text)
		}
		// Something else brings the counts along.
		<-deliverLater(t, s, mailed(s, "a.b", "one", 70, inDetails("down")))
		<-deliverLater(t, s, mailed(s, "a.b", "one", 71, inDetails("up")))
		if header, text = readMail(t, o.taken()[2].raw); subjectOf(t, header) != "penstock: 2 selected events from one" || !strings.Contains(text, "    up\n\nAgain, as") {
			t.Errorf("%s", text)
		}
	})
}

// Counts of what was confirmed survive a server that takes nothing, which is not asked
// more often for them.
func TestEmailRepeatsInOutage(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, o *postOffice, s *emailSink) {
		<-deliverLater(t, s, mailed(s, "a.b", "one", 0, inDetails("down")))
		<-deliverLater(t, s, mailed(s, "a.b", "one", 1, inDetails("down"), inDetails("down")))
		heal := o.set(func() { o.from = smtpReply(550, smtp.EnhancedCode{5, 7, 1}, "no") })
		time.Sleep(5 * time.Hour)
		if n := o.attempts(); n < 3 || n > 20 {
			t.Errorf("%d attempts", n)
		}
		heal()
		time.Sleep(6 * time.Minute)
		mails := o.taken()
		if len(mails) != 2 {
			t.Fatalf("%d mails", len(mails))
		}
		if header, _ := readMail(t, mails[1].raw); subjectOf(t, header) != "penstock: 2 selected events from one" {
			t.Errorf("subject %s", subjectOf(t, header))
		}
	})
}

// No more mails than max_per_hour; what is due then comes in one.
func TestEmailCap(t *testing.T) {
	inBubble(t, func(c *EmailConfig) { c.MaxPerHour, c.GroupWait, c.GroupInterval = 3, time.Second, 0 }, func(t *testing.T, o *postOffice, s *emailSink) {
		for i := range 3 {
			<-deliverLater(t, s, mailed(s, "a.b", "one", i, inDetails(fmt.Sprint(i))))
		}
		var outs []chan Result
		for i := range 20 {
			outs = append(outs, deliverLater(t, s, mailed(s, "a.b", fmt.Sprint("source", i), 10+i, inDetails("x"), inDetails("y"))))
		}
		s.Hurry()
		time.Sleep(59 * time.Minute)
		if n := len(o.taken()); n != 3 || answered(t, outs[0]) {
			t.Errorf("%d mails", n)
		}
		time.Sleep(time.Minute)
		for _, out := range outs {
			if res := <-out; res.Verdict != Done {
				t.Errorf("got %+v", res)
			}
		}
		if n := len(o.taken()); n != 4 {
			t.Fatalf("%d mails", n)
		}
		header, text := readMail(t, o.taken()[3].raw)
		if subjectOf(t, header) != "penstock: 40 selected events from several sources" || strings.Count(text, "a.b") != 40 {
			t.Errorf("%s", text)
		}
	})
}

// What a mail has only counted it has not told: it is no repeat when it comes again.
func TestEmailCountedIsNotTold(t *testing.T) {
	inBubble(t, func(c *EmailConfig) { c.MaxPerHour, c.MaxListed, c.GroupInterval = 1, 2, 0 }, func(t *testing.T, o *postOffice, s *emailSink) {
		first := deliverLater(t, s, mailed(s, "a.b", "one", 0, inDetails("a"), inDetails("b")))
		<-deliverLater(t, s, mailed(s, "a.b", "two", 2, inDetails("c")))
		<-first
		time.Sleep(time.Hour)
		if out := deliverLater(t, s, mailed(s, "a.b", "one", 3, inDetails("a"))); !answered(t, out) {
			t.Error("what was listed is held")
		}
		if out := deliverLater(t, s, mailed(s, "a.b", "two", 4, inDetails("c"))); answered(t, out) {
			t.Error("what was only counted passes as told")
		}
	})
}

// Hurry sends what is held, and what is just on its way.
func TestEmailHurry(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, o *postOffice, s *emailSink) {
		out := deliverLater(t, s, mailed(s, "a.b", "one", 0, inDetails("x")))
		s.Hurry()
		if !answered(t, out) {
			t.Error("still held")
		}
		time.Sleep(500 * time.Millisecond)
		if out := deliverLater(t, s, mailed(s, "a.b", "one", 1, inDetails("y"))); !answered(t, out) {
			t.Error("what was on its way is held")
		}
		time.Sleep(time.Second)
		if out := deliverLater(t, s, mailed(s, "a.b", "one", 2, inDetails("z"))); answered(t, out) {
			t.Error("hurries for ever")
		}
	})
}

// In an outage what is held is tried again with a pause, and nothing more is taken, so
// that everybody sees it. Then it goes back to the log.
// covers: OPC-24
func TestEmailOutage(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, o *postOffice, s *emailSink) {
		heal := o.set(func() { o.from = smtpReply(421, smtp.EnhancedCode{4, 3, 2}, "going down") })
		held := deliverLater(t, s, mailed(s, "a.b", "one", 0, inDetails("x")))
		other := deliverLater(t, s, mailed(s, "a.b", "two", 1, inDetails("y")))
		time.Sleep(time.Minute)
		if answered(t, held) {
			t.Error("given up")
		}
		out := deliverLater(t, s, mailed(s, "a.b", "one", 2, inDetails("z")))
		if res := <-out; res.Verdict != Retry || fault.CodeOf(res.Err) != "deliver.email_busy" {
			t.Errorf("got %+v", res)
		}
		heal()
		time.Sleep(time.Minute)
		for _, out := range []chan Result{held, other} {
			if res := <-out; res.Verdict != Done {
				t.Errorf("got %+v", res)
			}
		}
		id, _ := readMail(t, o.taken()[0].raw)
		if tried := o.attempts(); tried < 4 || tried > 9 {
			t.Errorf("%d attempts", tried)
		}

		o.set(func() { o.data = smtpReply(451, smtp.EnhancedCode{4, 3, 0}, "no") })
		time.Sleep(time.Hour)
		held, other = deliverLater(t, s, mailed(s, "a.b", "one", 3, inDetails("v"))), deliverLater(t, s, mailed(s, "a.b", "two", 4, inDetails("w")))
		time.Sleep(6 * time.Minute)
		for _, out := range []chan Result{held, other} {
			if res := <-out; res.Verdict != Retry || res.Err == nil {
				t.Errorf("got %+v", res)
			}
		}
		if again, _ := readMail(t, o.taken()[0].raw); again.Get("Message-ID") != id.Get("Message-ID") {
			t.Error("another id")
		}
	})
}

// A recipient that is put off gets the mail later, the others once.
func TestEmailGreylisted(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, o *postOffice, s *emailSink) {
		heal := o.set(func() {
			o.rcpt = map[string]error{"ann@example.org": smtpReply(450, smtp.EnhancedCode{4, 2, 0}, "greylisted")}
		})
		out := deliverLater(t, s, mailed(s, "a.b", "one", 0, inDetails("x")))
		time.Sleep(45 * time.Second)
		if n := len(o.taken()); n != 1 || answered(t, out) {
			t.Errorf("%d mails", n)
		}
		heal()
		time.Sleep(time.Minute)
		if res := <-out; res.Verdict != Done {
			t.Errorf("got %+v", res)
		}
		mails := o.taken()
		if len(mails) != 2 || len(mails[0].to) != 1 || mails[1].to[0] != "ann@example.org" || !bytes.Equal(mails[0].raw, mails[1].raw) {
			t.Errorf("mails %+v", mails)
		}
	})
}

// What nobody waits for any more is not mailed: it comes again.
func TestEmailAbandoned(t *testing.T) {
	inBubble(t, func(c *EmailConfig) { c.MaxListed = 2 }, func(t *testing.T, o *postOffice, s *emailSink) {
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan Result, 1)
		go func() {
			gone <- s.Deliver(ctx, mailed(s, "a.b", "one", 0, inDetails("both"), inDetails("gone"), inDetails("uncounted"), inDetails("both")))
		}()
		synctest.Wait()
		stays := deliverLater(t, s, mailed(s, "a.b", "one", 10, inDetails("both"), inDetails("stays")))
		cancel()
		if res := <-gone; res.Verdict != Retry || !errors.Is(res.Err, context.Canceled) {
			t.Errorf("got %+v", res)
		}
		<-stays
		header, text := readMail(t, o.taken()[0].raw)
		if subjectOf(t, header) != "penstock: 2 selected events from one" || strings.Contains(text, "gone") || strings.Contains(text, "times") || !strings.Contains(text, "both\n1 more") {
			t.Errorf("%s", text)
		}

		// Nor is anything of it left in the id.
		other := openMail(t, s.cfg)
		raw := letters(t, other, time.Now(), mailed(s, "a.b", "one", 10, inDetails("both"), inDetails("stays")))
		want, _ := readMail(t, bytes.TrimSuffix(raw, []byte("=====\r\n")))
		if id := header.Get("Message-ID"); id != want.Get("Message-ID") {
			t.Errorf("id %s, want %s", id, want.Get("Message-ID"))
		}

		// The same while the server fails.
		heal := o.set(func() { o.from = smtpReply(451, smtp.EnhancedCode{4, 3, 0}, "no") })
		time.Sleep(time.Hour)
		ctx, cancel = context.WithCancel(t.Context())
		go func() { gone <- s.Deliver(ctx, mailed(s, "a.b", "one", 20, inDetails("gone"))) }()
		time.Sleep(time.Minute)
		cancel()
		<-gone
		heal()
		time.Sleep(time.Hour)
		if n := len(o.taken()); n != 1 {
			t.Errorf("%d mails", n)
		}
		<-deliverLater(t, s, mailed(s, "a.b", "one", 20, inDetails("gone")))

		// The same while the server thinks about it.
		release := make(chan struct{})
		heal = o.set(func() { o.hang, o.from = release, smtpReply(451, smtp.EnhancedCode{4, 3, 0}, "no") })
		time.Sleep(time.Hour)
		ctx, cancel = context.WithCancel(t.Context())
		go func() { gone <- s.Deliver(ctx, mailed(s, "a.b", "one", 30, inDetails("gone again"))) }()
		time.Sleep(40 * time.Second)
		cancel()
		<-gone
		close(release)
		synctest.Wait()
		heal()
		time.Sleep(time.Hour)
		if n := len(o.taken()); n != 2 {
			t.Errorf("%d mails", n)
		}
	})
}

// What is not selected is confirmed at once, while other events are held.
func TestEmailOthers(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, o *postOffice, s *emailSink) {
		held := deliverLater(t, s, mailed(s, "a.b", "one", 0, inDetails("x")))
		out := deliverLater(t, s, mailed(s, "a.c", "one", 1, inDetails("x"), inDetails("y")))
		if !answered(t, out) || (<-out).Verdict != Done || answered(t, held) {
			t.Error("held")
		}
		<-held
		if n := len(o.taken()); n != 1 {
			t.Errorf("%d mails", n)
		}
	})
}

// The number of groups and of lines that are remembered has a bound, and no event is
// lost to it.
func TestEmailBounds(t *testing.T) {
	inBubble(t, func(c *EmailConfig) { c.GroupBy, c.MaxPerHour = []EmailGroup{EmailByAccount}, 3600 }, func(t *testing.T, o *postOffice, s *emailSink) {
		var events []*Event
		for i := range 2 * mostMailGroups {
			e := event(i, inDetails("x"))
			e.Account = fmt.Sprint(i)
			events = append(events, e)
		}
		if res := <-deliverLater(t, s, batchOfEvents(s, events...)); res.Verdict != Done {
			t.Errorf("got %+v", res)
		}
		if n := len(o.taken()); n != mostMailGroups+1 || len(s.groups) > mostMailGroups+1 {
			t.Errorf("%d mails, %d groups", n, len(s.groups))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range mostMailsTold + 5 {
			s.tell(s.groups["all others"], mailMark{byte(i), byte(i >> 8), 1}, time.Now())
		}
		n := 0
		for _, g := range s.groups {
			n += len(g.told)
		}
		if n != s.told || n > mostMailsTold {
			t.Errorf("%d lines are remembered, %d by count", n, s.told)
		}
		s.forget(time.Now().Add(24 * time.Hour))
		if s.told != 0 || len(s.groups) != 0 {
			t.Errorf("%d lines, %d groups are left", s.told, len(s.groups))
		}
	})
}

func TestEmailConfig(t *testing.T) {
	tests := []struct {
		key    string
		change func(*EmailConfig)
	}{
		{"address", func(c *EmailConfig) { c.Address = "smtp.example.org" }},
		{"address", func(c *EmailConfig) { c.Address = ":587" }},
		{"address", func(c *EmailConfig) { c.Address = "smtp.example.org:0" }},
		{"encryption", func(c *EmailConfig) { c.Encryption = "tls" }},
		{"encryption", func(c *EmailConfig) { c.Encryption = EmailPlain }},
		{"auth", func(c *EmailConfig) { c.Auth = "ntlm" }},
		{"username", func(c *EmailConfig) { c.Username = "a\nb" }},
		{"password", func(c *EmailConfig) { c.Password = config.Secret{} }},
		{"password", func(c *EmailConfig) { c.Username = "" }},
		{"password", func(c *EmailConfig) { c.Password = config.NewSecret("x\n") }},
		{"hello", func(c *EmailConfig) { c.Hello = "a b" }},
		{"from", func(c *EmailConfig) { c.From = "" }},
		{"from", func(c *EmailConfig) { c.From = "a@example.org\r\nBcc: b@example.org" }},
		{"from", func(c *EmailConfig) { c.From = "é@example.org" }},
		{"to", func(c *EmailConfig) { c.To = nil }},
		{"from", func(c *EmailConfig) { c.From = `"a>b"@example.org` }},
		{"to[0]", func(c *EmailConfig) { c.To = []string{"a@example.org, b@example.org"} }},
		{"select", func(c *EmailConfig) { c.Select = EmailSelect{} }}, // covers: OPC-8
		{"select.opswat[0]", func(c *EmailConfig) { c.Select.OPSWAT = []OPSWATLogType{"complaint"} }},
		{"select.types", func(c *EmailConfig) { c.Select.Types = []string{"a b"} }},
		{"group_by[1]", func(c *EmailConfig) { c.GroupBy = []EmailGroup{EmailBySource, EmailBySource} }},
		{"group_wait", func(c *EmailConfig) { c.GroupWait = -1 }},
		{"group_interval", func(c *EmailConfig) { c.GroupInterval = 25 * time.Hour }},
		{"repeat_interval", func(c *EmailConfig) { c.RepeatInterval = -1 }},
		{"max_per_hour", func(c *EmailConfig) { c.MaxPerHour = 0 }},
		{"max_listed", func(c *EmailConfig) { c.MaxListed = 0 }},
		{"who[0]", func(c *EmailConfig) { c.Who = []string{"a..b"} }},
		{"details[0]", func(c *EmailConfig) { c.Details = []string{""} }},
		{"timeout", func(c *EmailConfig) { c.Timeout = 0 }},
		{"tls.key_file", func(c *EmailConfig) { c.TLS.CertFile = "x" }},
	}
	for _, tt := range tests {
		cfg := defaultEmail()
		cfg.Address, cfg.From, cfg.To = "smtp.example.org:587", "a@example.org", []string{"b@example.org"}
		cfg.Username, cfg.Password = "u", config.NewSecret("p")
		cfg.Select.OPSWAT = []OPSWATLogType{"noncompliant"}
		must(t, cfg.Validate())
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
}

// Nothing that an event holds gets out of its line, or into a header.
func FuzzEmail(f *testing.F) {
	f.Add("a.b", "src", `{"device_name":"x","details":"y"}`, int64(1))
	f.Add("a.b\r\n", "\r\nBcc: x@example.org\r\n", `{"params":{"user":"\u202e\ud83d\ude00\r\n.\r\n"},"details":{"a":[1,2]}}`, int64(-1))
	f.Add("a.b", "s", `{"details":"`+strings.Repeat(`\ud83d\ude00`, 5000)+`"}`, int64(0))
	f.Add("a.b", "s", `{"details":"`, int64(0))
	cfg := defaultEmail()
	cfg.Address, cfg.From, cfg.To = "smtp.example.org:587", "a@example.org", []string{"b@example.org"}
	cfg.Select.Types = []string{">"}
	at := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, kind, source, doc string, ns int64) {
		s := openMail(t, cfg)
		e := &Event{ID: messages.NewID([]byte(doc)), Type: kind, Source: source, Time: ns, Doc: []byte(doc)}
		raw := letters(t, s, at, batchOfEvents(s, e, e))
		if s.selects(kind) != (len(raw) > 0) {
			t.Fatalf("type %q: mail %q", kind, raw)
		}
		if len(raw) == 0 {
			return
		}
		raw = bytes.TrimSuffix(raw, []byte("=====\r\n"))
		for line := range bytes.Lines(raw) {
			if len(line) > 998 || !bytes.HasSuffix(line, []byte("\r\n")) || bytes.ContainsAny(line[:len(line)-2], "\r\n\x00") {
				t.Fatalf("line %q", line)
			}
		}
		header, text := readMail(t, raw)
		if len(header) != 15 || header.Get("Bcc") != "" || len(header["Subject"]) != 1 {
			t.Fatalf("%d headers: %v", len(header), header)
		}
		lines := strings.Split(text, "\n")
		for _, line := range lines {
			if n := len([]rune(line)); n > 500 || strings.ContainsFunc(line, func(r rune) bool { return !showable(r) }) {
				t.Fatalf("line of %d: %q", n, line)
			}
		}
		if len(lines) > 11 || !strings.Contains(text, "(2 times)") {
			t.Fatalf("text %q", text)
		}
	})
}

func BenchmarkEmail(b *testing.B) {
	cfg := defaultEmail()
	cfg.Address, cfg.From, cfg.To = "smtp.example.org:587", "a@example.org", []string{"b@example.org"}
	b.Run("not_selected", func(b *testing.B) {
		cfg.Select.OPSWAT = []OPSWATLogType{"added"}
		s := openMail(b, cfg)
		defer s.Close()
		benchmarkSink(b, s, 1000, trailEvent)
	})
	b.Run("repeats", func(b *testing.B) {
		cfg.Select.Types = []string{"a.b"}
		s := openMail(b, cfg)
		defer s.Close()
		now := time.Now()
		letters(b, s, now, batchOf(s, 0, trailEvent))
		benchmarkSink(b, s, 1000, trailEvent)
	})
	b.Run("mails", func(b *testing.B) {
		o := &postOffice{rcpt: map[string]error{}}
		l := &smtpInMemory{conns: make(chan net.Conn), closed: make(chan struct{})}
		o.serve(l)
		defer o.close()
		cfg.Encryption, cfg.Select.Types = EmailPlain, []string{"a.b"}
		cfg.GroupWait, cfg.GroupInterval, cfg.RepeatInterval = 0, 0, 0
		s := openMail(b, cfg)
		s.smtp.dial, s.config.MaxPerHour = l.dial, 1<<30
		defer s.Close()
		benchmarkSink(b, s, 1000, trailEvent)
	})
}
