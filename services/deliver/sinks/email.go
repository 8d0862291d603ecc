package sinks

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("email", "Mails digests of selected events over SMTP.", defaultEmail, openEmail)
}

var (
	emailMails = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_email_mails_total", Help: "Attempts to hand a mail to the server, by verdict: done, retry, reject, stop.",
	}, []string{"destination", "verdict"})
	emailRepeats = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_email_repeats_total", Help: "Selected events that say what a mail within repeat_interval has said, and brought no mail of their own.",
	}, []string{"destination"})
	emailMissed = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_email_recipients_missed_total", Help: "Recipients that the server refused for a mail that others got.",
	}, []string{"destination"})
	emailPostponed = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_email_postponed_total", Help: "Times that digests were due and max_per_hour made them wait.",
	}, []string{"destination"})
)

// EmailEncryption is how the connection to the mail server is protected.
type EmailEncryption string

// The ways.
const (
	// EmailStartTLS: from STARTTLS on, which the server must offer.
	EmailStartTLS EmailEncryption = "starttls"
	// EmailImplicit: from the first byte.
	EmailImplicit EmailEncryption = "implicit"
	// EmailPlain: not at all.
	EmailPlain EmailEncryption = "none"
)

// Values implements [config.Enum].
func (EmailEncryption) Values() []string {
	return []string{string(EmailStartTLS), string(EmailImplicit), string(EmailPlain)}
}

// EmailAuth is how user and password are presented.
type EmailAuth string

// The mechanisms. Source: RFC 4616, RFC 2195; LOGIN is an Internet draft that servers
// still know.
const (
	EmailAuthPlain   EmailAuth = "plain"
	EmailAuthLogin   EmailAuth = "login"
	EmailAuthCRAMMD5 EmailAuth = "cram-md5"
)

// Values implements [config.Enum].
func (EmailAuth) Values() []string {
	return []string{string(EmailAuthPlain), string(EmailAuthLogin), string(EmailAuthCRAMMD5)}
}

// EmailGroup is what the events of one digest have in common.
type EmailGroup string

// What to group by.
const (
	EmailBySource  EmailGroup = "source"
	EmailByType    EmailGroup = "type"
	EmailByAccount EmailGroup = "account"
	EmailByRegion  EmailGroup = "region"
)

// Values implements [config.Enum].
func (EmailGroup) Values() []string {
	return []string{string(EmailBySource), string(EmailByType), string(EmailByAccount), string(EmailByRegion)}
}

// OPSWATLogType is a log type of OPSWAT Central Management.
type OPSWATLogType string

// opswatLogTypes has the kind of record of each log type. Source: formats F-2,
// features OPC-15 and OPC-17.
var opswatLogTypes = map[OPSWATLogType]string{
	"compliant": "device", "noncompliant": "device", "allow_device_access": "device", "block_device_access": "device",
	"deleted": "device", "added": "device", "critical_found": "device", "process_scan_infection_found": "device",
	"critical_cleared": "device", "report_no_threat": "device", "exempt_all": "device", "unexempt": "device",
	"access_granted": "device", "access_revoked": "device", "unknown_device_detected": "device", "unseen": "device",
	"deleted_user": "device",
	"config":       "account", "logon": "account", "logout": "account", "license_left": "account",
}

// Values implements [config.Enum].
func (OPSWATLogType) Values() []string {
	var names []string
	for name := range opswatLogTypes {
		names = append(names, string(name))
	}
	slices.Sort(names)
	return names
}

// EmailSelect names the events that are worth a mail.
type EmailSelect struct {
	// OPSWAT are log types of OPSWAT and MetaDefender IT Access. An event is meant whose type ends in device.<log type> or account.<log type>, whichever the log type belongs to.
	OPSWAT []OPSWATLogType `yaml:"opswat"`
	// Types of events, with the wildcards of NATS: * is one word, > at the end one or more.
	Types []string `yaml:"types"`
}

// EmailConfig configures the email sink.
type EmailConfig struct {
	// Address of the mail server: host and port. Required.
	Address string `yaml:"address"`
	// Encryption: starttls (the server must offer it), implicit (usually port 465), or none, for a relay on this host or in a network that nobody else reads.
	Encryption EmailEncryption `yaml:"encryption"`
	// Auth is how user and password are presented: plain, login or cram-md5. Without a username nothing is presented.
	Auth EmailAuth `yaml:"auth"`
	// Username for the mail server.
	Username string `yaml:"username"`
	// Password belongs to Username.
	Password config.Secret `yaml:"password"`
	// Hello is the name that penstock gives itself. Empty: that of the host.
	Hello string `yaml:"hello"`
	// From is the sender, e.g. "penstock <penstock@example.org>". Required.
	From string `yaml:"from"`
	// To are the recipients, up to 100. Each gets every mail. Required.
	To []string `yaml:"to"`
	// Select names the events that are mailed; all others are confirmed without one. Required.
	Select EmailSelect `yaml:"select"`
	// GroupBy says what the events of one mail have in common: source, type, account, region.
	GroupBy []EmailGroup `yaml:"group_by"`
	// GroupWait is how long the first event of a mail waits for more. Unit: duration; 0 sends at once.
	GroupWait time.Duration `yaml:"group_wait"`
	// GroupInterval is the least time between two mails of a group. Unit: duration.
	GroupInterval time.Duration `yaml:"group_interval"`
	// RepeatInterval is how long an event that says what a mail has said already, but for the time, brings no mail of its own; it is counted in the next one of its group. Unit: duration; 0 mails all.
	RepeatInterval time.Duration `yaml:"repeat_interval"`
	// MaxPerHour caps the mails of one process in any 60 minutes. What is due beyond that comes together in one later mail. Unit: mails.
	MaxPerHour int `yaml:"max_per_hour"`
	// MaxListed caps the events that a mail lists; the rest is counted. Unit: events.
	MaxListed int `yaml:"max_listed"`
	// Who are fields of a document that say which device or person it is about; the first that is there is shown. A path has dots.
	Who []string `yaml:"who"`
	// Details are fields that say what happened; the first that is there is shown.
	Details []string `yaml:"details"`
	// Timeout bounds one conversation with the server. Unit: duration.
	Timeout time.Duration `yaml:"timeout"`
	// TLS settings for starttls and implicit.
	TLS TLSConfig `yaml:"tls"`
}

func defaultEmail() EmailConfig {
	return EmailConfig{
		Encryption:     EmailStartTLS,
		Auth:           EmailAuthPlain,
		GroupBy:        []EmailGroup{EmailBySource},
		GroupWait:      30 * time.Second,
		GroupInterval:  5 * time.Minute,
		RepeatInterval: 4 * time.Hour,
		MaxPerHour:     12,
		MaxListed:      50,
		Who:            []string{"device_name", "device_id", "admin_name", "admin_email", "params.who", "params.user", "userIdentity.arn"},
		Details:        []string{"details", "title", "message", "eventName", "event"},
		Timeout:        time.Minute,
	}
}

// Validate reports every problem, each with the key to change.
func (c EmailConfig) Validate() error {
	var p config.Problems
	host, port, err := net.SplitHostPort(c.Address)
	n, numeric := strconv.ParseUint(port, 10, 16)
	p.Need(err == nil && host != "" && numeric == nil && n > 0, "address", "set host and port of the mail server, e.g. smtp.example.org:587")
	p.Need(slices.Contains(c.Encryption.Values(), string(c.Encryption)), "encryption", "use starttls, implicit or none")
	p.Need(slices.Contains(c.Auth.Values(), string(c.Auth)), "auth", "use plain, login or cram-md5")
	p.Need(mailWord(c.Username), "username", "use one line of text")
	p.Need((c.Username == "") == c.Password.IsZero(), "password", "set both username and password, or neither")
	p.Need(!strings.ContainsAny(c.Password.Reveal(), "\r\n\x00"), "password", "use one line of text; a secret from a file may end in a line break too many")
	p.Need(c.Username == "" || c.Encryption != EmailPlain, "encryption", "use starttls or implicit: a password goes over no connection that others can read")
	p.Need(mailWord(c.Hello) && !strings.Contains(c.Hello, " "), "hello", "use the full name of this host, e.g. penstock.example.org")
	p.Need(goodMailAddress(c.From), "from", "set one address in ASCII, e.g. penstock <penstock@example.org>")
	p.Need(len(c.To) >= 1 && len(c.To) <= 100, "to", "list 1 to 100 recipients")
	for i, to := range c.To {
		p.Need(goodMailAddress(to), "to["+strconv.Itoa(i)+"]", "use one address in ASCII, e.g. soc@example.org")
	}
	c.selection(&p)
	for i, g := range c.GroupBy {
		p.Need(slices.Contains(g.Values(), string(g)) && !slices.Contains(c.GroupBy[:i], g), "group_by["+strconv.Itoa(i)+"]", "use source, type, account and region, each once")
	}
	p.Need(c.GroupWait >= 0 && c.GroupWait <= time.Hour, "group_wait", "use 0s to 1h, e.g. 30s")
	p.Need(c.GroupInterval >= 0 && c.GroupInterval <= 24*time.Hour, "group_interval", "use 0s to 24h, e.g. 5m")
	p.Need(c.RepeatInterval >= 0 && c.RepeatInterval <= 30*24*time.Hour, "repeat_interval", "use 0s to 720h, e.g. 4h")
	p.Need(c.MaxPerHour >= 1 && c.MaxPerHour <= 3600, "max_per_hour", "use 1 to 3600 mails, e.g. 12")
	p.Need(c.MaxListed >= 1 && c.MaxListed <= 10_000, "max_listed", "use 1 to 10000 events, e.g. 50")
	mailPaths(&p, "who", c.Who)
	mailPaths(&p, "details", c.Details)
	p.Need(c.Timeout > 0 && c.Timeout <= 10*time.Minute, "timeout", "use a duration above 0s and up to 10m, e.g. 1m")
	c.TLS.problems(&p)
	return p.Err()
}

// selection checks what is selected. Source: features OPC-8.
func (c EmailConfig) selection(p *config.Problems) {
	if len(c.Select.OPSWAT)+len(c.Select.Types) == 0 {
		p.Add("select", "no event is selected", "name at least one, e.g. select: {opswat: [noncompliant]} or select: {types: [voiso.app_login.*]}")
	}
	for i, name := range c.Select.OPSWAT {
		p.Need(opswatLogTypes[name] != "", "select.opswat["+strconv.Itoa(i)+"]", "use one of "+strings.Join(name.Values(), ", "))
	}
	if _, err := condition.ParseTypes(c.Select.Types); err != nil {
		why, fix := condition.Explain(err)
		p.Add("select.types", why, fix)
	}
}

func mailWord(s string) bool { return !strings.ContainsAny(s, "\r\n\t\x00") && len(s) <= 256 }

// goodMailAddress tells whether s is one address that each server understands.
func goodMailAddress(s string) bool {
	a, err := mail.ParseAddress(s)
	if err != nil || len(a.Address) > 254 {
		return false
	}
	for i := range len(a.Address) {
		if a.Address[i] <= ' ' || a.Address[i] > '~' {
			return false
		}
	}
	return !strings.ContainsAny(a.Address, `<>"\\,`)
}

func mailPaths(p *config.Problems, key string, list []string) {
	p.Need(len(list) <= 32, key, "use up to 32 fields")
	for i, path := range list {
		p.Need(path != "" && !slices.Contains(strings.Split(path, "."), ""), key+"["+strconv.Itoa(i)+"]", "use the name of a field, with dots between the names of a path, e.g. params.user")
	}
}

const (
	// emailFrames is how many frames may wait for their mail.
	emailFrames = 1024
	// emailPatience is for how long a server that fails for now is tried with what is
	// held, before it goes back to the log, where another process may have better luck.
	emailPatience = 5 * time.Minute
	// What is shown of an event, in characters.
	mostName, mostWho, mostDetails = 120, 80, 300
)

// emailSink mails digests.
//
//   - A selected event is confirmed when the server has taken the mail that lists or
//     counts it (250 after the data) for at least one recipient, and has taken or
//     refused it for each other one, or put that off for too long. Until then it is
//     in no store but the log.
//   - An event that repeats what a mail said less than repeat_interval ago is
//     confirmed by that mail; it is counted in the next one. That count is lost when
//     the process ends before.
//   - All other events are confirmed at once.
//   - Order: by time within a mail, else none.
//   - After an outage events are mailed again of which the server did not say whether
//     it has them; a mail that holds the same events has the same Message-ID.
//   - Memory: up to max_listed lines and a few bytes for each event that is held, for
//     up to 256 groups; frames as [Patient] says.
//   - A mail is judged as a whole, so one that the server will not have for what is in
//     it takes all its events into quarantine.
//
// It is its own destination with its own reader of the log: whatever becomes of mails,
// other destinations go on.
//
// Source: formats F-31; RFC 5321, RFC 5322, RFC 3207, RFC 4954.
type emailSink struct {
	cfg     EmailConfig
	name    string
	log     *slog.Logger
	types   condition.Types
	opswat  map[string]string // log type to kind of record
	who     [][]string
	details [][]string
	smtp    *mailServer
	// patience is emailPatience but for tests.
	patience time.Duration

	start sync.Once
	loops sync.WaitGroup
	stop  context.CancelFunc
	woken chan struct{}

	mu sync.Mutex
	digests
}

var _ Patient = (*emailSink)(nil)

func openEmail(_ context.Context, cfg EmailConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	server, err := newMailServer(cfg, deps.Destination)
	if err != nil {
		return nil, err
	}
	types, err := condition.ParseTypes(cfg.Select.Types)
	if err != nil {
		return nil, err // not reached: validated
	}
	s := &emailSink{
		cfg: cfg, name: deps.Destination, log: deps.Log, types: types, opswat: map[string]string{}, smtp: server,
		who: splitPaths(cfg.Who), details: splitPaths(cfg.Details), patience: emailPatience,
		stop: func() {}, woken: make(chan struct{}, 1), digests: newDigests(cfg),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, name := range cfg.Select.OPSWAT {
		s.opswat[string(name)] = opswatLogTypes[name]
	}
	return s, nil
}

func splitPaths(list []string) [][]string {
	var out [][]string
	for _, path := range list {
		out = append(out, strings.Split(path, "."))
	}
	return out
}

// Limits let each frame come as soon as it is read: waiting is done here.
func (s *emailSink) Limits() Limits {
	return Limits{Events: 10_000, Bytes: config.MiB, Age: 0}
}

// Frames implements [Patient].
func (s *emailSink) Frames() int { return emailFrames }

// Hurry implements [Patient]: digests go out now, as far as max_per_hour lets them.
func (s *emailSink) Hurry() {
	s.mu.Lock()
	s.hurried = time.Now()
	s.mu.Unlock()
	s.wake()
}

func (s *emailSink) wake() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

// selects tells whether events of a type are mailed.
func (s *emailSink) selects(eventType string) bool {
	if len(s.cfg.Select.Types) > 0 && s.types.Has(eventType) {
		return true
	}
	at := strings.LastIndexByte(eventType, '.')
	if at < 0 {
		return false
	}
	kind, ok := s.opswat[eventType[at+1:]]
	if !ok {
		return false
	}
	before, found := strings.CutSuffix(eventType[:at], kind)
	return found && (before == "" || before[len(before)-1] == '.')
}

// The first byte of an event in a batch.
const (
	mailNotSelected = 0
	mailSelected    = 1
)

// Append writes what a mail shows of an event: its time and the texts of a note. Of
// an event that is not selected it writes only that.
func (s *emailSink) Append(dst []byte, e *Event) []byte {
	if !s.selects(e.Type) {
		return append(dst, mailNotSelected)
	}
	dst = append(dst, mailSelected)
	dst = binary.BigEndian.AppendUint64(dst, uint64(e.Time))
	for _, text := range []string{e.Type, e.Source, e.Account, e.Region} {
		dst = appendMailSized(dst, func(dst []byte) []byte { return appendMailText(dst, text, mostName) })
	}
	dst = appendMailSized(dst, func(dst []byte) []byte { return appendValueAt(dst, e.Doc, s.who, mostWho) })
	return appendMailSized(dst, func(dst []byte) []byte { return appendValueAt(dst, e.Doc, s.details, mostDetails) })
}

// appendMailSized puts the length of what text appends before it, in two bytes: texts are
// at most a few hundred characters long.
func appendMailSized(dst []byte, text func([]byte) []byte) []byte {
	start := len(dst) + 2
	dst = text(append(dst, 0, 0))
	binary.BigEndian.PutUint16(dst[start-2:], uint16(len(dst)-start))
	return dst
}

// mailNote is an event as a mail shows it.
type mailNote struct {
	time                                        int64
	kind, source, account, region, who, details string
}

// readNote reads what Append wrote. The texts are copies.
func readNote(data []byte) mailNote {
	n := mailNote{time: int64(binary.BigEndian.Uint64(data[1:]))}
	data = data[9:]
	for _, text := range []*string{&n.kind, &n.source, &n.account, &n.region, &n.who, &n.details} {
		size := int(binary.BigEndian.Uint16(data))
		*text = string(data[2 : 2+size])
		data = data[2+size:]
	}
	return n
}

// Deliver adds the selected events of b to their digests and waits until each has
// been mailed. While the server fails nothing more is taken, so that the outage shows.
func (s *emailSink) Deliver(ctx context.Context, b Batch) Result {
	if ctx.Err() != nil {
		return s.cancelled(ctx)
	}
	s.start.Do(s.run)
	t := &mailTicket{verdicts: make([]Verdict, b.Len()), done: make(chan struct{})}
	repeats := 0
	s.mu.Lock()
	if s.failing != nil {
		defer s.mu.Unlock()
		return Result{Verdict: Retry, Err: s.failing}
	}
	now := time.Now()
	for i := range b.Len() {
		data := b.Event(i)
		if data[0] == mailNotSelected {
			continue
		}
		if !s.take(t, i, b.ID(i), readNote(data), now) {
			repeats++
		}
	}
	held := t.left
	s.mu.Unlock()
	emailRepeats.WithLabelValues(s.name).Add(float64(repeats))
	s.wake()
	if held == 0 {
		return Result{}
	}
	b.Release()
	select {
	case <-t.done:
		return t.result()
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.left == 0 {
		return t.result()
	}
	s.abandon(t)
	return s.cancelled(ctx)
}

func (s *emailSink) cancelled(ctx context.Context) Result {
	return Result{Verdict: Retry, Err: errMailUnreachable.New(context.Cause(ctx), "mail the events of destination %s", s.name)}
}

// run starts the one goroutine that sends.
func (s *emailSink) run() {
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	s.stop = cancel
	s.mu.Unlock()
	s.loops.Go(func() { s.loop(ctx) })
}

// loop sends one mail after the other.
func (s *emailSink) loop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		s.mu.Lock()
		was := s.capped
		l, wait := s.next(time.Now())
		postponed := s.capped && !was
		s.mu.Unlock()
		if postponed {
			emailPostponed.WithLabelValues(s.name).Inc()
			s.log.Warn("max_per_hour is reached; what is due comes together in a later mail", "wait", wait)
		}
		if l == nil {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-s.woken:
			case <-ctx.Done():
			}
			continue
		}
		if l.raw == nil {
			l.raw = s.message(l)
		}
		out := s.smtp.send(ctx, l.raw, l.to)
		if ctx.Err() == nil {
			s.settle(l, out)
		}
	}
}

// settle does what the outcome of an attempt asks for.
func (s *emailSink) settle(l *mailLetter, out mailOutcome) {
	emailMails.WithLabelValues(s.name, out.verdict.String()).Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if out.verdict != Stop || l.taken {
		for _, r := range out.refused {
			emailMissed.WithLabelValues(s.name).Inc()
			s.log.Warn("the mail server refuses a recipient; the others get the mail", "recipient", r.address, "err", r.err)
		}
	}
	l.sending, l.taken, l.to = false, l.taken || out.taken, out.left
	if out.verdict == Retry {
		l.tries++
		l.tried = now
		l.next = now.Add(mailPause(l.tries))
		if l.next.Sub(l.created) < s.patience {
			if !l.taken {
				s.failing = out.err
				s.dropOrphan(l)
			}
			return
		}
	}
	if out.verdict != Done && l.taken {
		emailMissed.WithLabelValues(s.name).Add(float64(len(l.to)))
		s.log.Warn("some recipients do not get a mail that others got", "recipients", len(l.to), "err", out.err)
		out.verdict = Done
	}
	switch out.verdict {
	case Done:
		s.accepted(l, now)
	case Retry, Stop:
		s.giveBack(out.verdict, out.err, now)
	case Reject, Split, TooLarge:
		s.close(l, Reject, out.err)
	}
}

// Close ends what is being sent. What is still held comes again.
func (s *emailSink) Close() error {
	s.mu.Lock()
	stop := s.stop
	s.mu.Unlock()
	stop()
	s.loops.Wait()
	return nil
}

// secretsOf are the words of the configuration that no error may show.
func (c EmailConfig) secretsOf() []string {
	password := c.Password.Reveal()
	return []string{
		password,
		base64.StdEncoding.EncodeToString([]byte(password)),
		base64.StdEncoding.EncodeToString([]byte("\x00" + c.Username + "\x00" + password)),
	}
}

var errMailSlow = errors.New("no full answer within the timeout")

// appendMailText appends text as one line that no terminal or mail client takes for more
// than text: what cannot be printed becomes a space, and what is beyond most
// characters goes.
func appendMailText(dst []byte, text string, most int) []byte {
	start, n := len(dst), 0
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		text = text[size:]
		if !showable(r) {
			r = ' '
		}
		if r == ' ' && (len(dst) == start || dst[len(dst)-1] == ' ') {
			continue
		}
		if n == most {
			return append(dst, "…"...)
		}
		dst = utf8.AppendRune(dst, r)
		n++
	}
	for len(dst) > start && dst[len(dst)-1] == ' ' {
		dst = dst[:len(dst)-1]
	}
	return dst
}
