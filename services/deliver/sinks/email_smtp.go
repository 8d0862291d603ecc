package sinks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/textproto"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/wneessen/go-mail/smtp"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/probe"
)

var (
	errMailUnreachable = fault.Define("deliver.email_unreachable", fault.Retry,
		"check that the mail server runs and that name, port and firewall let penstock through")
	errMailBusy = fault.Define("deliver.email_busy", fault.Retry,
		"nothing, when it passes; else see why the mail server puts mails off")
	errMailDenied = fault.Define("deliver.email_denied", fault.Stop,
		"correct username, password and auth of the destination, or the certificates that it trusts (tls.ca_file)")
	errMailSetup = fault.Define("deliver.email_setup", fault.Stop,
		"correct address, encryption, auth or hello of the destination: the mail server does not work with them")
	errMailSender = fault.Define("deliver.email_sender_refused", fault.Stop,
		"correct from of the destination, or let the mail server take mails of this sender from penstock")
	errMailRecipients = fault.Define("deliver.email_recipients_refused", fault.Stop,
		"correct to of the destination: the mail server takes no mail for any of the recipients")
	errMailRefused = fault.Define("deliver.email_refused", fault.Reject,
		"see why the mail server refuses this mail (size, content), then redrive its events")
)

// mostSaid bounds what is read in one conversation, in bytes.
const mostSaid = 256 << 10

// mailServer is how to reach one. Methods are called by one goroutine at a time.
type mailServer struct {
	cfg  EmailConfig
	name string // of the destination
	host string
	tls  *tls.Config
	// quiet takes secrets out of what the server says.
	quiet httpClient
	// dial makes the connection; tests put a pipe there.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	// proven tells that it has taken a mail: what it refuses from then on is the mail.
	proven bool
}

// newMailServer connects to nothing. Errors: deliver.tls_setup.
func newMailServer(cfg EmailConfig, destination string) (*mailServer, error) {
	tlsConfig, err := cfg.TLS.client(destination)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return nil, errMailSetup.New(nil, "open destination %s", destination) // not reached: validated
	}
	if tlsConfig.ServerName == "" {
		tlsConfig.ServerName = host
	}
	return &mailServer{
		cfg: cfg, name: destination, host: host, tls: tlsConfig,
		quiet: httpClient{secrets: cfg.secretsOf()},
		dial:  (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
	}, nil
}

// mailOutcome is what became of a mail.
type mailOutcome struct {
	verdict Verdict
	err     error
	// taken tells that a recipient gets it, left which ones neither get it nor were
	// refused for good.
	taken   bool
	left    []string
	refused []mailRefusal
}

// mailRefusal is a recipient that the server does not take.
type mailRefusal struct {
	address string
	err     error
}

// send hands a mail over. It is done when the server said so after the last byte.
func (m *mailServer) send(ctx context.Context, raw []byte, to []string) mailOutcome {
	ctx, cancel := context.WithTimeoutCause(ctx, m.cfg.Timeout, errMailSlow)
	defer cancel()
	s, err := m.open(ctx)
	if err != nil {
		return m.failed(err, to)
	}
	defer s.end()
	out, err := s.offer(to)
	if err != nil {
		return m.failed(err, to)
	}
	if out.err != nil {
		return out // nobody gets it
	}
	w, err := s.Data()
	if err == nil {
		if _, err = w.Write(raw); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		fail := m.failed(s.step("hand a mail over", err, m.refuses(err)), out.left)
		fail.refused = out.refused
		if fail.verdict == Retry {
			fail.left = slices.DeleteFunc(slices.Clone(to), func(a string) bool {
				return slices.ContainsFunc(out.refused, func(r mailRefusal) bool { return r.address == a })
			})
		}
		return fail
	}
	m.proven, out.taken = true, true
	if len(out.left) > 0 {
		out.verdict, out.err = Retry, errMailBusy.New(nil, "mail %d recipients of destination %s", len(out.left), m.name)
	}
	return out
}

// failed is the outcome of a conversation that ended with a fault.
func (m *mailServer) failed(err error, to []string) mailOutcome {
	verdict := map[fault.Class]Verdict{fault.Retry: Retry, fault.Stop: Stop, fault.Reject: Reject}[fault.ClassOf(err)]
	return mailOutcome{verdict: verdict, err: err, left: to}
}

// refuses is the kind of a refusal after the data. A full mailbox, a mail system that is
// down and a quota that is used up are nothing that the mail could help, and pass. While
// the server has not taken any, a refusal for reasons of policy is more likely about all
// mails than about this one. Source: RFC 3463 sections 3.3 (X.2.2 is a full mailbox), 3.4
// (X.3.X is mail system status, X.3.4 a mail that is too big), 3.5 (X.4.X is network and
// routing status, X.4.5 congestion) and 3.8 (X.7.X is security or policy status).
func (m *mailServer) refuses(err error) *fault.Kind {
	switch status := mailStatus(err); {
	case status == "5.3.4":
	case status == "5.2.2", strings.HasPrefix(status, "5.3."), strings.HasPrefix(status, "5.4."):
		return errMailBusy
	case !m.proven && strings.HasPrefix(status, "5.7."):
		return errMailSender
	}
	return errMailRefused
}

var mailStatusCode = regexp.MustCompile(`^[245]\.[0-9]{1,3}\.[0-9]{1,3}\b`)

// mailStatus is the status code of RFC 2034 in a reply, "" without one.
func mailStatus(err error) string {
	var reply *textproto.Error
	if !errors.As(err, &reply) {
		return ""
	}
	return mailStatusCode.FindString(reply.Msg)
}

// mailSession is one conversation.
type mailSession struct {
	*smtp.Client
	server *mailServer
	ctx    context.Context //nolint:containedctx // a conversation is one call
	conn   net.Conn
	undo   func() bool
}

// open connects, and presents user and password. Errors are faults.
func (m *mailServer) open(ctx context.Context) (*mailSession, error) {
	s := &mailSession{server: m, ctx: ctx}
	conn, err := m.dial(ctx, "tcp", m.cfg.Address)
	if err != nil {
		return nil, s.step("connect", err, nil)
	}
	s.conn = &mailMeter{Conn: conn, left: mostSaid}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	s.undo = context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err := s.greet(); err != nil {
		s.undo()
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *mailSession) greet() (err error) {
	m, conn := s.server, s.conn
	if m.cfg.Encryption == EmailImplicit {
		secure := tls.Client(conn, m.tls)
		if err := secure.HandshakeContext(s.ctx); err != nil {
			return s.step("begin TLS", err, nil)
		}
		conn = secure
	}
	if s.Client, err = smtp.NewClient(conn, m.host); err != nil {
		return s.step("be greeted", err, errMailSetup)
	}
	// Neither addresses nor headers need it, and a relay further on may not know it.
	s.SkipSMTPUTF8(true)
	if err := s.Hello(m.hello()); err != nil {
		return s.step("say hello", err, errMailSetup)
	}
	if m.cfg.Encryption == EmailStartTLS {
		if ok, _ := s.Extension("STARTTLS"); !ok {
			return errMailSetup.New(nil, "begin TLS with the mail server of destination %s: it does not offer STARTTLS", m.name)
		}
		if err := s.StartTLS(m.tls); err != nil {
			return s.step("begin TLS", err, errMailSetup)
		}
	}
	if m.cfg.Username == "" {
		return nil
	}
	_, offered := s.Extension("AUTH")
	if !slices.Contains(strings.Fields(strings.ToUpper(offered)), strings.ToUpper(string(m.cfg.Auth))) {
		return errMailSetup.New(nil, "log in to the mail server of destination %s: it does not offer %s", m.name, m.cfg.Auth)
	}
	if err := s.Auth(m.mechanism()); err != nil {
		return s.step("log in", err, errMailDenied)
	}
	return nil
}

func (m *mailServer) hello() string {
	if m.cfg.Hello != "" {
		return m.cfg.Hello
	}
	if name, err := os.Hostname(); err == nil && name != "" {
		return name
	}
	return "localhost"
}

func (m *mailServer) mechanism() smtp.Auth {
	user, password := m.cfg.Username, m.cfg.Password.Reveal()
	switch m.cfg.Auth {
	case EmailAuthLogin:
		return smtp.LoginAuth(user, password, m.host, false)
	case EmailAuthCRAMMD5:
		return smtp.CRAMMD5Auth(user, password)
	case EmailAuthPlain:
	}
	return smtp.PlainAuth("", user, password, m.host, false)
}

// offer names sender and recipients. The outcome has an error when no recipient is
// left to send to; left are those that were put off while others were taken.
func (s *mailSession) offer(to []string) (out mailOutcome, err error) {
	m := s.server
	from, _ := mail.ParseAddress(m.cfg.From) // validated
	if err := s.Mail("<" + from.Address + ">"); err != nil {
		return out, s.step("name the sender", err, errMailSender)
	}
	taken := 0
	var last error
	for _, text := range to {
		a, _ := mail.ParseAddress(text) // validated
		err := s.Rcpt("<" + a.Address + ">")
		var reply *textproto.Error
		switch {
		case err == nil:
			taken++
		case !errors.As(err, &reply) || reply.Code == 421: // the connection is gone
			return out, s.step("name a recipient", err, nil)
		case reply.Code < 500:
			last = err
			out.left = append(out.left, text)
		default:
			out.refused = append(out.refused, mailRefusal{text, s.step("name a recipient", err, errMailRecipients)})
		}
	}
	switch {
	case taken > 0:
	case len(out.left) > 0:
		out.verdict, out.err = Retry, s.step("name a recipient", last, nil)
	default:
		out.verdict, out.err = Stop, out.refused[0].err
	}
	return out, nil
}

// end says goodbye, for which it does not wait long.
func (s *mailSession) end() {
	if s.undo() {
		_ = s.conn.SetDeadline(time.Now().Add(2 * time.Second))
		_ = s.Quit()
	}
	_ = s.conn.Close()
}

// step is the fault for an error. Refused is the kind for a reply of 500 and more.
// Source: RFC 5321 section 4.2.1; RFC 4954 section 6.
func (s *mailSession) step(doing string, err error, refused *fault.Kind) error {
	m := s.server
	doing += " with the mail server of destination " + m.name
	var reply *textproto.Error
	var plain tls.RecordHeaderError
	switch {
	case errors.As(err, &plain):
		return errMailSetup.New(errors.New("it does not speak TLS from the first byte on"), "%s", doing)
	case errors.As(err, &reply) && reply.Code >= 500 && refused != nil:
		return refused.New(m.said(reply), "%s", doing)
	case errors.As(err, &reply):
		return errMailBusy.New(m.said(reply), "%s", doing)
	case distrusts(err):
		return errMailDenied.New(errors.New(m.quiet.sanitise(err.Error())), "%s", doing)
	case context.Cause(s.ctx) != nil:
		return errMailUnreachable.New(context.Cause(s.ctx), "%s", doing)
	}
	return errMailUnreachable.New(errors.New(m.quiet.sanitise(err.Error())), "%s", doing)
}

func (m *mailServer) said(reply *textproto.Error) error {
	return fmt.Errorf("it says: %d %s", reply.Code, m.quiet.sanitise(reply.Msg))
}

// mailMeter bounds what is read of a connection.
type mailMeter struct {
	net.Conn
	left int
}

var errMailTalks = errors.New("the mail server says too much")

func (m *mailMeter) Read(p []byte) (int, error) {
	if m.left <= 0 {
		return 0, errMailTalks
	}
	n, err := m.Conn.Read(p[:min(len(p), m.left)])
	m.left -= n
	return n, err
}

// Probe implements [probe.Prober]: all of a delivery up to the recipients. No mail is
// sent.
func (c EmailConfig) Probe(ctx context.Context) []probe.Finding {
	m, err := newMailServer(c, "doctor")
	if err != nil {
		return []probe.Finding{probe.Error("open", c.Address, err)}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, errMailSlow)
	defer cancel()
	s, err := m.open(ctx)
	if err != nil {
		return []probe.Finding{probe.Error("connect", c.Address, err)}
	}
	defer s.end()
	detail := "without encryption"
	if state, err := s.GetTLSConnectionState(); err == nil {
		detail = tls.VersionName(state.Version)
	}
	if c.Username != "" {
		detail += ", logged in"
	}
	all := []probe.Finding{probe.Good("connect", c.Address, detail)}
	if c.TLS.CertFile != "" {
		all = append(all, probe.Certificate(c.TLS.CertFile, c.TLS.KeyFile))
	}
	out, err := s.offer(c.To)
	if err != nil {
		return append(all, probe.Error("sender", c.From, err))
	}
	if out.verdict == Stop {
		return append(all, probe.Error("recipients", c.Address, out.err))
	}
	for _, r := range out.refused {
		all = append(all, probe.Doubt("recipient", r.address, r.err.Error(), "correct it, or take it out of to: the others get mails"))
	}
	for _, address := range out.left {
		all = append(all, probe.Doubt("recipient", address, "the server puts it off", errMailBusy.Fix))
	}
	return append(all, probe.Good("sender and recipients", c.From, "no mail was sent"))
}
