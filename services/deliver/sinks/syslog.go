package sinks

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() {
	define("syslog", "Writes RFC 5424 or RFC 3164 messages over TLS, TCP or UDP.", defaultSyslog, openSyslog)
}

// SyslogProtocol is the form of a message.
type SyslogProtocol string

// The protocols.
const (
	// RFC5424 has structured data and a full time.
	RFC5424 SyslogProtocol = "rfc5424"
	// RFC3164 is the old form, without year, zone and structured data.
	RFC3164 SyslogProtocol = "rfc3164"
)

// Values implements [config.Enum].
func (SyslogProtocol) Values() []string { return []string{string(RFC5424), string(RFC3164)} }

// Transport carries messages.
type Transport string

// The transports.
const (
	// OverTLS is RFC 5425.
	OverTLS Transport = "tls"
	// OverTCP is RFC 6587.
	OverTCP Transport = "tcp"
	// OverUDP is RFC 5426.
	OverUDP Transport = "udp"
)

// Values implements [config.Enum].
func (Transport) Values() []string {
	return []string{string(OverTLS), string(OverTCP), string(OverUDP)}
}

// Framing tells messages in a stream apart. Source: RFC 6587 section 3.4.
type Framing string

// The framings.
const (
	// OctetCounting writes the length of a message before it.
	OctetCounting Framing = "octet_counting"
	// LineFeed ends a message with a line feed.
	LineFeed Framing = "lf"
)

// Values implements [config.Enum].
func (Framing) Values() []string { return []string{string(OctetCounting), string(LineFeed)} }

// Facility is the part of a system that a message is said to come from.
type Facility string

// Its values, in the order of their numbers. Source: RFC 5424 section 6.2.1; the names
// are those of syslog.conf(5).
var facilities = []string{
	"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
	"ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
}

// Values implements [config.Enum].
func (Facility) Values() []string { return facilities }

// Severity of a message.
type Severity string

var severities = []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}

// Values implements [config.Enum].
func (Severity) Values() []string { return severities }

// priority is the number that begins a message, in its brackets.
func priority(f Facility, s Severity) string {
	return "<" + strconv.Itoa(slices.Index(facilities, string(f))*8+slices.Index(severities, string(s))) + ">"
}

// SyslogConfig configures the syslog sink.
type SyslogConfig struct {
	// Address of the receiver, host and port. The usual ports are 6514 for tls, 601 or 514 for tcp, 514 for udp. Required.
	Address string `yaml:"address"`
	// Transport: tls, tcp or udp. Datagrams of udp may be lost on their way and count as confirmed all the same.
	Transport Transport `yaml:"transport"`
	// Protocol of the messages: rfc5424 or rfc3164.
	Protocol SyslogProtocol `yaml:"protocol"`
	// Framing in a stream: octet_counting, or lf for receivers that only read lines.
	Framing Framing `yaml:"framing"`
	// Format of the text: document, or envelope (with penstock's id, type, time, source, account and region).
	Format Format `yaml:"format"`
	// Facility by its name, e.g. local0.
	Facility Facility `yaml:"facility"`
	// Severity by its name, e.g. info.
	Severity Severity `yaml:"severity"`
	// Host, App, ProcID and MsgID are fixed text, - for none, or one of {hostname} (of this machine), {type}, {source}, {account} and {region} of the event.
	Host string `yaml:"host"`
	// App is the application, and the tag of RFC 3164. See host.
	App string `yaml:"app"`
	// ProcID is the process. See host.
	ProcID string `yaml:"procid"`
	// MsgID is the kind of message; RFC 3164 has none. See host.
	MsgID string `yaml:"msgid"`
	// EnterpriseID is the number, as IANA gives them to organisations, in the name of the structured data: penstock@<number>. The default is the one for documentation.
	EnterpriseID int `yaml:"enterprise_id"`
	// BOM begins the text with a byte order mark, which says that it is UTF-8. Only for rfc5424.
	BOM bool `yaml:"bom"`
	// Batch bounds what is written at once.
	Batch Limits `yaml:"batch"`

	StreamConfig `yaml:",inline"`
}

// Longest fields. Source: RFC 5424 section 6; RFC 3164 section 4.1.3 for the tag.
const (
	mostHost   = 255
	mostApp    = 48
	mostProcID = 128
	mostMsgID  = 32
	mostTag    = 32
	// mostDatagram is what UDP over IPv4 carries at most, in bytes.
	mostDatagram = 65507
)

func defaultSyslog() SyslogConfig {
	return SyslogConfig{
		Transport: OverTLS, Protocol: RFC5424, Framing: OctetCounting, Format: Document,
		Facility: "local0", Severity: "info",
		Host: "{hostname}", App: "penstock", ProcID: "-", MsgID: "{type}", EnterpriseID: 32473,
		Batch:        Limits{Events: 5000, Bytes: config.MiB, Age: 200 * time.Millisecond},
		StreamConfig: defaultStream(),
	}
}

// Validate reports every problem, each with the key to change.
func (c SyslogConfig) Validate() error {
	var p config.Problems
	needAddress(&p, "address", c.Address, "logs.example.com:6514")
	fieldProblems(&p, "host", c.Host, mostHost)
	fieldProblems(&p, "app", c.App, mostApp)
	fieldProblems(&p, "procid", c.ProcID, mostProcID)
	fieldProblems(&p, "msgid", c.MsgID, mostMsgID)
	p.Need(c.Protocol == RFC5424 || len(c.App) <= mostTag, "app", "use at most 32 characters with protocol: rfc3164")
	p.Need(c.EnterpriseID >= 1 && c.EnterpriseID < 1<<32, "enterprise_id", "use the number that IANA has given to your organisation")
	p.Need(!c.BOM || c.Protocol == RFC5424, "bom", "remove it, or set protocol: rfc5424, which it is for")
	p.In("batch", c.Batch.Validate())
	c.StreamConfig.problems(&p, c.Transport != OverTLS)
	return p.Err()
}

// placeholders of a field.
var placeholders = []string{"{hostname}", "{type}", "{source}", "{account}", "{region}"}

func fieldProblems(p *config.Problems, key, value string, most int) {
	if slices.Contains(placeholders, value) {
		return
	}
	ok := value != "" && len(value) <= most && string(appendField(nil, value, most, printable)) == value && !strings.ContainsAny(value, "{}")
	p.Need(ok, key, "use up to "+strconv.Itoa(most)+" printable ASCII characters without spaces, - for none, or one of "+strings.Join(placeholders, ", "))
}

// field is one field of a header.
type field struct {
	fixed string
	from  string // the placeholder; "" for fixed text
	most  int
	good  func(byte) bool
}

// newField makes a field of what is configured. Fixed text is made fit here.
func newField(value string, most int, good func(byte) bool) field {
	f := field{from: value, most: most, good: good}
	if value == "{hostname}" {
		value, _ = os.Hostname() // without one the field says so
	} else if slices.Contains(placeholders, value) {
		return f
	}
	return field{fixed: string(appendField(nil, value, most, good))}
}

func (f *field) append(dst []byte, e *Event) []byte {
	switch f.from {
	case "{type}":
		return appendField(dst, e.Type, f.most, f.good)
	case "{source}":
		return appendField(dst, e.Source, f.most, f.good)
	case "{account}":
		return appendField(dst, e.Account, f.most, f.good)
	case "{region}":
		return appendField(dst, e.Region, f.most, f.good)
	}
	return append(dst, f.fixed...)
}

// appendField appends v as a field of a header: what is not good becomes _, what is too
// long is cut, and what is empty is -.
func appendField(dst []byte, v string, most int, good func(byte) bool) []byte {
	if v == "" {
		return append(dst, '-')
	}
	for i := range min(len(v), most) {
		c := v[i]
		if !good(c) {
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// printable is PRINTUSASCII of RFC 5424.
func printable(c byte) bool { return c > ' ' && c <= '~' }

// inTag is what receivers take for a part of the tag of RFC 3164, which ends at a colon
// or a bracket.
func inTag(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' || c == '/'
}

// appendParam appends a parameter of structured data, unless its value is empty.
// Control characters become spaces. Source: RFC 5424 section 6.3.3.
func appendParam(dst []byte, name, value string) []byte {
	if value == "" {
		return dst
	}
	dst = append(append(append(dst, ' '), name...), `="`...)
	for i := range len(value) {
		switch c := value[i]; {
		case c == '"' || c == '\\' || c == ']':
			dst = append(dst, '\\', c)
		case c < ' ' || c == 0x7f:
			dst = append(dst, ' ')
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}

// appendStamp appends the time as RFC 3164 has it, in UTC; now when it is not known.
func appendStamp(dst []byte, ns int64) []byte {
	t := time.Unix(0, ns)
	if ns == 0 {
		t = time.Now()
	}
	return t.UTC().AppendFormat(dst, time.Stamp)
}

// appendCounted puts the length of what stands in dst from start on before it.
func appendCounted(dst []byte, start int) []byte {
	var digits [20]byte
	head := append(strconv.AppendInt(digits[:0], int64(len(dst)-start), 10), ' ')
	dst = append(dst, head...)
	copy(dst[start+len(head):], dst[start:len(dst)-len(head)])
	copy(dst[start:], head)
	return dst
}

// uncounted is the length of a message behind its count.
func uncounted(event []byte) int { return len(event) - bytes.IndexByte(event, ' ') - 1 }

// unlined is the length of a message before its line feed.
func unlined(event []byte) int { return len(event) - 1 }

// syslogSink writes messages. What counts as confirmed, in which order and how often
// events come, and what is kept in memory, is that of [stream]. Datagrams are done when
// the system has taken them, in order, and nothing is kept.
type syslogSink struct {
	cfg                    SyslogConfig
	priority, sd           string
	host, app, proc, msgID field
	size                   func([]byte) int
	most                   int

	// One of them is nil.
	stream    *stream
	datagrams *udpPeer
}

func openSyslog(_ context.Context, cfg SyslogConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	most, good := mostApp, printable
	if cfg.Protocol == RFC3164 {
		most, good = mostTag, inTag
	}
	s := &syslogSink{
		cfg: cfg, priority: priority(cfg.Facility, cfg.Severity),
		sd:   " [penstock@" + strconv.Itoa(cfg.EnterpriseID) + ` id="`,
		host: newField(cfg.Host, mostHost, printable), app: newField(cfg.App, most, good),
		proc: newField(cfg.ProcID, mostProcID, good), msgID: newField(cfg.MsgID, mostMsgID, printable),
		most: int(cfg.MaxMessage), size: uncounted,
	}
	if cfg.Framing == LineFeed {
		s.size = unlined
	}
	if cfg.Transport == OverUDP {
		s.datagrams = &udpPeer{name: deps.Destination, address: cfg.Address, timeout: cfg.Timeout}
		s.most = min(s.most, mostDatagram)
		if deps.Log != nil {
			deps.Log.Warn("datagrams may be lost unseen and count as confirmed; use tls or tcp where that matters", "address", cfg.Address)
		}
		return s, nil
	}
	var err error
	s.stream, err = newStream(deps, cfg.Address, cfg.Transport == OverTCP, false, cfg.StreamConfig)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *syslogSink) Limits() Limits { return s.cfg.Batch }

// Append writes one message with its framing. Source: formats F-23, F-24.
func (s *syslogSink) Append(dst []byte, e *Event) []byte {
	start := len(dst)
	dst = append(dst, s.priority...)
	if s.cfg.Protocol == RFC3164 {
		dst = appendStamp(dst, e.Time)
		dst = s.host.append(append(dst, ' '), e)
		dst = s.app.append(append(dst, ' '), e)
		if s.cfg.ProcID != "-" {
			dst = append(s.proc.append(append(dst, '['), e), ']')
		}
		dst = append(dst, ": "...)
	} else {
		dst = append(dst, "1 "...)
		if e.Time == 0 {
			dst = append(dst, '-')
		} else {
			dst = time.Unix(0, e.Time).UTC().AppendFormat(dst, "2006-01-02T15:04:05.000000Z")
		}
		dst = s.host.append(append(dst, ' '), e)
		dst = s.app.append(append(dst, ' '), e)
		dst = s.proc.append(append(dst, ' '), e)
		dst = s.msgID.append(append(dst, ' '), e)
		dst = append(dst, s.sd...)
		dst = append(hex.AppendEncode(dst, e.ID[:]), '"')
		dst = appendParam(dst, "type", e.Type)
		dst = appendParam(dst, "source", e.Source)
		dst = appendParam(dst, "account", e.Account)
		dst = appendParam(dst, "region", e.Region)
		if e.Replay != "" {
			dst = appendParam(dst, "replay", e.Replay)
		}
		dst = append(dst, "] "...)
		if s.cfg.BOM {
			dst = append(dst, "\xef\xbb\xbf"...)
		}
	}
	dst = s.cfg.Format.appendLine(dst, e)
	switch {
	case s.cfg.Transport != OverUDP && s.cfg.Framing == LineFeed:
		return dst // a document of several lines was put on one
	case s.cfg.Transport == OverUDP:
		return dst[:len(dst)-1]
	}
	return appendCounted(dst[:len(dst)-1], start)
}

// Deliver writes the events of b to a connection, or each as a datagram.
func (s *syslogSink) Deliver(ctx context.Context, b Batch) Result {
	if s.datagrams != nil {
		return s.datagrams.deliver(ctx, b, s.most)
	}
	return s.stream.deliver(ctx, b, tooLarge(s.stream.name, b, s.most, s.size))
}

func (s *syslogSink) Close() error {
	if s.datagrams != nil {
		s.datagrams.close()
		return nil
	}
	s.stream.close()
	return nil
}

// udpPeer sends datagrams from one socket.
type udpPeer struct {
	name, address string
	timeout       time.Duration
	mu            sync.Mutex
	conn          net.Conn // nil until needed
}

// deliver sends each event as a datagram. An error of the network ends it: it tells of
// datagrams before, of which it is not known which.
func (u *udpPeer) deliver(ctx context.Context, b Batch, most int) Result {
	u.mu.Lock()
	defer u.mu.Unlock()
	refused, err := u.send(ctx, b, most)
	switch {
	case err == nil:
		return Result{Items: refused}
	case ctx.Err() != nil:
		return Result{Verdict: Retry, Err: errStreamBroken.New(context.Cause(ctx), "deliver to destination %s at %s", u.name, u.address), Items: refused}
	}
	u.close() // the name may lead elsewhere by now
	return Result{Verdict: Retry, Err: errStreamUnreachable.New(foreign(err), "deliver to destination %s at %s", u.name, u.address), Items: refused}
}

func (u *udpPeer) send(ctx context.Context, b Batch, most int) (refused []Exception, err error) {
	if u.conn == nil {
		ctx, cancel := context.WithTimeout(ctx, u.timeout)
		defer cancel()
		if u.conn, err = (&net.Dialer{}).DialContext(ctx, "udp", u.address); err != nil {
			u.conn = nil // not an interface around nil
			return nil, err
		}
	}
	if err := u.conn.SetWriteDeadline(time.Now().Add(u.timeout)); err != nil {
		return nil, err
	}
	for i := range b.Len() {
		if ctx.Err() != nil {
			return refused, context.Cause(ctx)
		}
		e := b.Event(i)
		err := error(syscall.EMSGSIZE) // as the system would say
		if len(e) <= most {
			_, err = u.conn.Write(e)
		}
		switch {
		case errors.Is(err, syscall.EMSGSIZE):
			refused = append(refused, Exception{Index: i, Verdict: Reject, Err: errStreamTooLarge.New(nil,
				"send a datagram of %d bytes to destination %s, which takes %d", len(e), u.name, most)})
		case err != nil:
			return refused, err
		}
	}
	return refused, nil
}

func (u *udpPeer) close() {
	if u.conn != nil {
		_ = u.conn.Close()
		u.conn = nil
	}
}

// Probe implements [probe.Prober].
func (c SyslogConfig) Probe(ctx context.Context) []probe.Finding {
	if c.Transport == OverUDP {
		u := &udpPeer{name: "doctor", address: c.Address, timeout: c.Timeout}
		defer u.close()
		if _, err := u.send(ctx, Batch{}, mostDatagram); err != nil {
			return []probe.Finding{probe.Bad("address", c.Address, err.Error(), "check the name and the network")}
		}
		return []probe.Finding{probe.Doubt("address", c.Address, "whether anybody listens for datagrams cannot be found out", "look at the receiver, or use tls or tcp")}
	}
	s, err := newStream(Deps{Destination: "doctor"}, c.Address, c.Transport == OverTCP, false, c.StreamConfig)
	if err != nil {
		return []probe.Finding{probe.Error("open", c.Address, err)}
	}
	return s.probe(ctx, c.StreamConfig)
}
