package formats

import (
	"bytes"
	"strconv"
	"time"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("syslog", "Syslog lines, RFC 5424 and RFC 3164, and what comes close to it.", shape{
		framing: func([]byte) framing.Framing { return framing.Framing{Kind: framing.Lines} },
		sniff:   isSyslog,
	}, func() SyslogConfig { return SyslogConfig{Fields: defaultFields()} }, openSyslog)
}

// SyslogConfig configures the format syslog. Its fields are facility, severity,
// timestamp, host, app, procid, msgid, sd and message; time_zone holds for times of
// RFC 3164, which name none.
type SyslogConfig struct {
	// EventTypeApp puts the name of the program behind the event type.
	EventTypeApp bool         `yaml:"event_type_app"`
	Fields       FieldsConfig `yaml:",inline"`
}

// Validate reports every problem, each with the key to change.
func (c SyslogConfig) Validate() error {
	var p config.Problems
	p.In("", c.Fields.Validate())
	p.Need(!c.EventTypeApp || c.Fields.EventTypeField == "", "event_type_app", "leave it out where event_type_field is set")
	return p.Err()
}

func openSyslog(c SyslogConfig, deps Deps) (Format, error) {
	if c.EventTypeApp {
		c.Fields.EventTypeField = "app"
	}
	return Format{New: func() Decoder { return newSyslog(c, deps) }, Base: c.Fields.base("syslog", deps), Grows: 3}, nil
}

// syslogLine is what a line of syslog says. Its texts are slices of the line, nil
// for what it does not say.
type syslogLine struct {
	zone     *time.Location
	observed int64 // Unix ns, when the line was seen; years are guessed by it. 0: not known

	priority                       int // -1 for none
	time                           int64
	hasTime                        bool
	stamp, host, app, proc, id, sd []byte
	message                        []byte
}

// parse reads a line. When why is not "", it is no syslog for want of what why
// says. An octet count before the line is stepped over.
//
// Source: RFC 5424, RFC 3164, RFC 6587 (octet count).
func (s *syslogLine) parse(b []byte) (why string) {
	*s = syslogLine{zone: s.zone, observed: s.observed, priority: -1}
	if n := run(b, 0); n > 0 && n < 10 && n+1 < len(b) && b[n] == ' ' && b[n+1] == '<' {
		b = b[n+1:]
	}
	if len(b) > 0 && b[0] == '<' {
		n := run(b, 1)
		if n == 1 || n > 4 || n >= len(b) || b[n] != '>' {
			return "the priority is malformed"
		}
		s.priority = 0
		for _, c := range b[1:n] {
			s.priority = 10*s.priority + int(c-'0')
		}
		if s.priority > 191 {
			return "the priority is above 191"
		}
		b = b[n+1:]
		if n := run(b, 0); n > 0 && n <= 3 && n < len(b) && b[n] == ' ' && b[0] != '0' {
			if stamp, _ := firstWord(b[n+1:]); string(stamp) == "-" || len(stamp) > 10 && stamp[4] == '-' {
				return s.rfc5424(b[n+1:])
			}
		}
	}
	rest, ok := s.rfc3164Time(b)
	if !ok {
		if s.priority < 0 {
			return "it begins with neither a priority nor a time"
		}
		s.message = b
		return ""
	}
	s.rfc3164(rest)
	return ""
}

// firstWord cuts b at its first space.
func firstWord(b []byte) (w, rest []byte) {
	n := bytes.IndexByte(b, ' ')
	if n < 0 {
		return b, nil
	}
	return b[:n], b[n+1:]
}

// said returns v, nil for what RFC 5424 writes for nothing.
func said(v []byte) []byte {
	if isDash(v) {
		return nil
	}
	return v
}

// rfc5424 reads what follows the version.
func (s *syslogLine) rfc5424(b []byte) (why string) {
	var fields [5][]byte
	for i := range fields {
		if fields[i], b = firstWord(b); len(fields[i]) == 0 || len(b) == 0 {
			return "the header of RFC 5424 ends too early"
		}
	}
	s.stamp, s.host, s.app, s.proc, s.id = said(fields[0]), said(fields[1]), said(fields[2]), said(fields[3]), said(fields[4])
	if s.stamp != nil {
		s.time, s.hasTime = parseTime(s.stamp)
	}
	if b[0] == '-' {
		b = b[1:]
	} else {
		n := dataEnd(b)
		if n < 0 {
			return "the structured data is malformed"
		}
		s.sd, b = b[:n], b[n:]
	}
	if len(b) > 0 && b[0] != ' ' {
		return "no space follows the structured data"
	}
	if len(b) > 0 {
		s.message = bytes.TrimPrefix(b[1:], []byte("\ufeff"))
	}
	return ""
}

// dataEnd returns the length of the structured data that begins b, -1 when it does
// not end.
func dataEnd(b []byte) int {
	for i := 0; ; {
		if i == len(b) || b[i] != '[' {
			if i == 0 {
				return -1
			}
			return i
		}
		quoted := false
		for i++; ; i++ {
			if i >= len(b) {
				return -1
			}
			if b[i] == ']' && !quoted {
				break
			}
			switch {
			case b[i] == '\\' && quoted:
				i++
			case b[i] == '"':
				quoted = !quoted
			}
		}
		i++
	}
}

// rfc3164 reads what follows the time: [HOST] TAG[PID]: MESSAGE.
func (s *syslogLine) rfc3164(b []byte) {
	if first, rest := firstWord(b); rest != nil && len(first) > 0 && first[len(first)-1] != ':' && bytes.IndexByte(first, '[') < 0 {
		s.host, b = first, rest
	}
	s.message = b
	const longest = 64 // bytes of a tag
	n := 0
	for n < len(b) && n <= longest && b[n] > ' ' && b[n] < 0x7f && b[n] != ':' && b[n] != '[' && b[n] != '"' && b[n] != '{' && b[n] != '=' {
		n++
	}
	if n == 0 || n >= len(b) {
		return
	}
	app, after := b[:n], b[n:]
	var proc []byte
	if after[0] == '[' {
		end := bytes.IndexByte(after, ']')
		if end < 0 || end > longest {
			return
		}
		proc, after = after[1:end], after[end+1:]
	}
	if len(after) == 0 || after[0] != ':' {
		return
	}
	s.app, s.proc = app, proc
	s.message = bytes.TrimPrefix(after[1:], []byte{' '})
}

// rfc3164Time reads the time that begins b: that of RFC 3164 with or without year,
// fraction and zone, or one of RFC 3339. rest is what comes behind it and a space.
func (s *syslogLine) rfc3164Time(b []byte) (rest []byte, ok bool) {
	at := b
	if len(b) > 0 && (b[0] == '*' || b[0] == '.') { // not synchronised, as Cisco writes
		at = b[1:]
	}
	if len(at) > 10 && at[4] == '-' {
		w, rest := firstWord(at)
		w = bytes.TrimSuffix(w, []byte{':'})
		if s.time, s.hasTime = parseTime(w); !s.hasTime {
			if s.time, s.hasTime = parseZoneless(w); !s.hasTime {
				return nil, false
			}
			s.time = inZone(s.time, s.zone)
		}
		s.stamp = w
		return rest, true
	}
	ns, n, ok := s.monthTime(at)
	if !ok {
		return nil, false
	}
	s.stamp, s.time, s.hasTime = at[:n], ns, ns != 0
	at = bytes.TrimPrefix(at[n:], []byte{':'})
	if len(at) > 0 && at[0] != ' ' {
		return nil, false
	}
	return bytes.TrimLeft(at, " "), true
}

var months = [...]string{"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"}

// monthTime reads "Jan  5 17:48:41", "Jan 5 2026 17:48:41.123" or "2026 Jan 5
// 17:48:41 UTC" off the beginning of b: n bytes. ns is 0 when there is no year and
// none can be guessed.
func (s *syslogLine) monthTime(b []byte) (ns int64, n int, ok bool) {
	year := 0
	if len(b) > 5 && b[4] == ' ' && run(b[:4], 0) == 4 {
		year, n = 100*two(b, 0)+two(b, 2), 5
	}
	if len(b) < n+len("Jan 5 17:48:41") || b[n+3] != ' ' {
		return 0, 0, false
	}
	month := 0
	for i, name := range months {
		if string(b[n:n+3]) == name {
			month = i + 1
		}
	}
	if month == 0 {
		return 0, 0, false
	}
	for n += 4; n < len(b) && b[n] == ' '; n++ {
	}
	end := run(b, n)
	day := 0
	for _, c := range b[n:min(end, n+2)] {
		day = 10*day + int(c-'0')
	}
	if end == n || end > n+2 || end == len(b) || b[end] != ' ' {
		return 0, 0, false
	}
	n = end + 1
	if year == 0 && len(b) > n+5 && run(b[:n+4], n) == n+4 && b[n+4] == ' ' {
		year, n = 100*two(b, n)+two(b, n+2), n+5
	}
	if len(b) < n+8 || b[n+2] != ':' || b[n+5] != ':' {
		return 0, 0, false
	}
	hour, minute, second := two(b, n), two(b, n+3), two(b, n+6)
	if day < 1 || day > 31 || hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60 {
		return 0, 0, false
	}
	n += 8
	fraction, scale := 0, 1_000_000_000
	if n+1 < len(b) && b[n] == '.' && b[n+1]-'0' <= 9 {
		for n++; n < len(b) && b[n]-'0' <= 9; n++ {
			if scale /= 10; scale > 0 {
				fraction += int(b[n]-'0') * scale
			}
		}
	}
	zone := s.zone
	if zone == nil {
		zone = time.UTC
	}
	if rest := b[n:]; bytes.HasPrefix(rest, []byte(" UTC")) || bytes.HasPrefix(rest, []byte(" GMT")) {
		if len(rest) == 4 || rest[4] == ' ' || rest[4] == ':' {
			zone, n = time.UTC, n+4
		}
	}
	if year == 0 {
		ns = s.guessYear(month, day, hour, minute, second, fraction, zone)
		return ns, n, true
	}
	if day > daysIn(year, month) || year < 1970 {
		return 0, 0, false
	}
	return time.Date(year, time.Month(month), day, hour, minute, second, fraction, zone).UnixNano(), n, true
}

// guessYear returns the latest such time that is not more than a day after the
// line was seen, 0 when that is not known or no near year has that day.
func (s *syslogLine) guessYear(month, day, hour, minute, second, fraction int, zone *time.Location) int64 {
	if s.observed == 0 {
		return 0
	}
	seen := time.Unix(0, s.observed).In(zone)
	for year := seen.Year() + 1; year > seen.Year()-8; year-- {
		if day > daysIn(year, month) {
			continue
		}
		at := time.Date(year, time.Month(month), day, hour, minute, second, fraction, zone)
		if at.Sub(seen) <= 24*time.Hour {
			return at.UnixNano()
		}
	}
	return 0
}

// syslog decodes lines of syslog.
//
//   - document: facility and severity, numbers; timestamp, as written; host, app,
//     procid, msgid and message, text; sd, the structured data, an object of
//     objects, or sd_text where it is malformed. What the line does not say is left
//     out.
//   - id: as configured, else none.
//   - time: that of the line, a year that is missing by when the object was
//     written; or as configured.
//   - type: syslog.<source>, or as configured.
//
// A message that is JSON or any other format stays the text that it is. Of equal
// parameters of the structured data, and of equal elements, the later ones have a
// number behind their names.
//
// Source: RFC 5424, RFC 3164.
type syslog struct {
	fields *fields
	line   syslogLine
	w      fieldWriter
	ids    [][]byte
	names  [][]byte
	value  []byte

	facility, severity, stamp, host, app, proc, msgID, sd, sdText, message column
}

func newSyslog(c SyslogConfig, deps Deps) *syslog {
	f := newFields("syslog", c.Fields, deps)
	s := &syslog{fields: f, line: syslogLine{zone: f.clock.zone}}
	for _, c := range []struct {
		name string
		to   *column
	}{
		{"facility", &s.facility},
		{"severity", &s.severity},
		{"timestamp", &s.stamp},
		{"host", &s.host},
		{"app", &s.app},
		{"procid", &s.proc},
		{"msgid", &s.msgID},
		{"sd", &s.sd},
		{"sd_text", &s.sdText},
		{messageField, &s.message},
	} {
		*c.to = newColumns([]string{c.name}, f.slot)[0]
	}
	return s
}

// Start implements Starter.
func (s *syslog) Start(h Head) error {
	s.line.observed = observedAt(h)
	return nil
}

// observedAt is when records were written, else received; 0 when nobody knows.
func observedAt(h Head) int64 {
	if at := h.Origin.GetCreated(); at != 0 {
		return at
	}
	return h.Origin.GetReceived()
}

// Decode implements Decoder.
func (s *syslog) Decode(rec []byte, d *Doc) error {
	l := &s.line
	if why := l.parse(rec); why != "" {
		return errLine.New(nil, "read a line of syslog, %d bytes: %s", len(rec), why)
	}
	s.fields.begin(d)
	s.w.begin()
	if l.priority >= 0 {
		s.w.priority(s.facility.key, s.severity.key, l.priority)
	}
	for _, f := range [...]struct {
		c *column
		v []byte
	}{{&s.stamp, l.stamp}, {&s.host, l.host}, {&s.app, l.app}, {&s.proc, l.proc}, {&s.msgID, l.id}, {&s.message, l.message}} {
		if f.v != nil {
			s.w.add(f.c, f.v)
			s.fields.set(f.c.slot, f.v)
		}
	}
	if l.sd != nil {
		if before, bad := len(s.w.buf), s.w.bad; !s.data(l.sd) {
			s.w.buf, s.w.bad = s.w.buf[:before], bad
			s.w.text(s.sdText.key, l.sd)
		}
	}
	if s.fields.config.KeepRaw {
		s.w.raw(rec)
	}
	d.Body = s.w.end()
	d.Odd |= s.w.odd()
	s.fields.finish(d)
	if s.fields.config.TimeField == "" {
		if d.Time, d.HasTime = l.time, l.hasTime; !l.hasTime {
			if d.Odd |= NoTime; l.stamp != nil {
				d.Odd ^= NoTime | BadTime
			}
		}
	}
	return nil
}

// priority adds facility and severity.
func (w *fieldWriter) priority(facility, severity fieldKey, priority int) {
	w.count(facility, priority>>3)
	w.count(severity, priority&7)
}

// count adds a small number.
func (w *fieldWriter) count(k fieldKey, n int) {
	w.buf = append(w.buf, k[:len(k)-1]...)
	if n >= 10 {
		w.buf = append(w.buf, '0'+byte(n/10))
	}
	w.buf = append(w.buf, '0'+byte(n%10), ',')
}

// maxParams bounds the parameters of a line, and its elements. Beyond it the
// structured data stays text.
const maxParams = 256

// data writes structured data: [id name="value" ...][...]. It returns false where
// that is not as RFC 5424 wants it.
func (s *syslog) data(b []byte) bool {
	s.w.object(s.sd.key)
	s.ids, s.names = s.ids[:0], s.names[:0]
	count := 0
	for len(b) > 0 {
		n := bytes.IndexAny(b, " ]")
		if b[0] != '[' || n < 2 || bytes.IndexByte(b[:n], '"') >= 0 || len(s.ids) == maxParams {
			return false
		}
		id := b[1:n]
		s.w.nameless(id, again(s.ids, id), '{')
		s.ids, s.names = append(s.ids, id), s.names[:0]
		for b = b[n:]; b[0] == ' '; count++ {
			b = b[1:]
			n := bytes.IndexByte(b, '=')
			if n < 1 || n+1 >= len(b) || b[n+1] != '"' || bytes.ContainsAny(b[:n], "] \"") || count == maxParams {
				return false
			}
			name := b[:n]
			i := n + 2
			for s.value = s.value[:0]; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' && i+1 < len(b) && (b[i+1] == '"' || b[i+1] == '\\' || b[i+1] == ']') {
					i++
				}
				s.value = append(s.value, b[i])
			}
			if i+1 >= len(b) {
				return false
			}
			s.w.nameless(name, again(s.names, name), '"')
			s.w.quoted(s.value)
			s.names = append(s.names, name)
			b = b[i+1:]
		}
		if b[0] != ']' {
			return false
		}
		s.w.close()
		b = b[1:]
	}
	s.w.close()
	return true
}

// quoted adds the rest of a field whose value's first quote stands.
func (w *fieldWriter) quoted(v []byte) {
	var bad bool
	w.buf, bad = appendText(w.buf, v)
	w.bad = w.bad || bad
	w.buf = append(w.buf, '"', ',')
}

// again counts how often name is among names.
func again(names [][]byte, name []byte) (n int) {
	for _, other := range names {
		if bytes.Equal(other, name) {
			n++
		}
	}
	return n
}

// nameless begins a field whose name is not known beforehand, up to the byte that
// opens its value. n is how many of that name there are before.
func (w *fieldWriter) nameless(name []byte, n int, opens byte) {
	w.buf = append(w.buf, '"')
	var bad bool
	w.buf, bad = appendText(w.buf, name)
	w.bad = w.bad || bad
	if n > 0 {
		w.buf = strconv.AppendInt(append(w.buf, '_'), int64(n+1), 10)
	}
	w.buf = append(w.buf, '"', ':', opens)
}

// isSyslog goes by the first line: it has a priority and a time, or a month, a day
// and a time, a host and a tag.
func isSyslog(key string, head []byte) bool {
	row, _, _ := bytes.Cut(trimSpace(head), []byte{'\n'})
	var s syslogLine
	if s.parse(bytes.TrimSuffix(row, []byte{'\r'})) != "" || s.stamp == nil {
		return false
	}
	plain := s.stamp[0] >= 'A' && s.host != nil && s.app != nil // lines that begin with other times are any log's
	return (s.priority >= 0 || plain) && !claimed(key, head)
}
