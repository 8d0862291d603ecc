package sinks

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	gomail "github.com/wneessen/go-mail"

	"github.com/penstock/penstock/services/internal/document"
)

const mailTime = "2006-01-02T15:04:05.000Z07:00"

// message is the whole mail of a letter. It is the same for the same events but for
// its date. Nothing of an event gets into a header but the name of its source.
// Source: formats F-31; RFC 5322; RFC 3834 for Auto-Submitted.
func (s *emailSink) message(l *mailLetter) []byte {
	var total int
	var ids idSum
	var keys []string
	source, several := "", false
	for i := range l.sections {
		x := &l.sections[i]
		for _, p := range []*mailPile{&x.fresh, &x.again} {
			if p.count == 0 {
				continue
			}
			several = several || p.mixed || total > 0 && p.source != source
			source, total = p.source, total+p.count
			ids.join(p.ids)
		}
		keys = append(keys, x.group.key)
	}
	if several {
		source = "several sources"
	}
	// Always in this form, so that a rule of a mail program can find it.
	title := strconv.Itoa(total) + " selected events from " + cmp.Or(source, "an unnamed source")

	from, _ := mail.ParseAddress(s.cfg.From) // validated
	_, domain, _ := strings.Cut(from.Address, "@")
	thread := sha256.Sum256([]byte(s.name + "\x00" + strings.Join(keys, "\x00")))
	root := hex.EncodeToString(thread[:8])

	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	m.FromMailAddress(from)
	var to []*mail.Address
	for _, text := range s.cfg.To {
		a, _ := mail.ParseAddress(text) // validated
		to = append(to, a)
	}
	m.ToMailAddress(to...)
	m.Subject("penstock: " + title)
	m.SetDateWithValue(l.created.UTC())
	m.SetMessageIDWithValue(fmt.Sprintf("%s.%016x%08x@%s", root, ids.high, ids.low>>32, domain))
	// No mail has this id. Mail programs put together what refers to the same.
	m.SetGenHeader(gomail.HeaderInReplyTo, "<"+root+"@"+domain+">")
	m.SetGenHeader(gomail.HeaderReferences, "<"+root+"@"+domain+">")
	m.SetGenHeader("Auto-Submitted", "auto-generated")
	m.SetBulk()
	m.SetUserAgent("penstock")
	m.SetBodyString(gomail.TypeTextPlain, string(s.text(l, title)))
	var raw bytes.Buffer
	_, _ = m.WriteTo(&raw) // a bytes.Buffer takes all, and nothing else can fail without files
	return raw.Bytes()
}

// text is the body of a mail.
func (s *emailSink) text(l *mailLetter, title string) []byte {
	out := []byte(title + "\n")
	left := s.cfg.MaxListed
	for i := range l.sections {
		x := &l.sections[i]
		out = append(out, '\n')
		if len(x.group.labels) > 0 {
			out = append(out, strings.Join(x.group.labels, ", ")+"\n\n"...)
		}
		out, left = appendMailPile(out, &x.fresh, left)
		if x.again.count > 0 {
			if x.fresh.count > 0 {
				out = append(out, '\n')
			}
			out = append(out, "Again, as in an earlier mail:\n\n"...)
			out, left = appendMailPile(out, &x.again, left)
		}
	}
	return append(out, "\n-- \nSent by penstock for its destination "+s.name+".\n"...)
}

// appendMailPile lists up to most lines by time and counts the rest.
func appendMailPile(out []byte, p *mailPile, most int) ([]byte, int) {
	lines := slices.Clone(p.order)
	slices.SortStableFunc(lines, func(a, b *mailLine) int { return cmp.Compare(a.first, b.first) })
	more := p.count
	for _, l := range lines[:min(most, len(lines))] {
		out = appendMailEntry(out, l)
		l.shown = true
		more -= l.count
	}
	if more > 0 {
		out = append(out, strconv.Itoa(more)+" more\n"...)
	}
	return out, most - min(most, len(lines))
}

// appendMailEntry writes time, type, who and details of a line.
func appendMailEntry(out []byte, l *mailLine) []byte {
	out = appendMailTime(out, l.first)
	out = append(append(out, "  "...), l.kind...)
	if l.who != "" {
		out = append(append(out, "  "...), l.who...)
	}
	if l.count > 1 {
		out = append(out, "  ("+strconv.Itoa(l.count)+" times"...)
		if l.last != l.first {
			out = appendMailTime(append(out, ", last "...), l.last)
		}
		out = append(out, ')')
	}
	out = append(out, '\n')
	if l.details != "" {
		out = append(append(append(out, "    "...), l.details...), '\n')
	}
	return out
}

func appendMailTime(out []byte, ns int64) []byte {
	if ns == 0 {
		return append(out, "time unknown"...)
	}
	return time.Unix(0, ns).UTC().AppendFormat(out, mailTime)
}

// showable tells what a mail may show as it is. Marks that turn the direction of
// text, among others, are not.
func showable(r rune) bool { return unicode.IsPrint(r) }

// appendValueAt appends the first of the values at paths in doc that says something,
// clean and cut.
func appendValueAt(dst, doc []byte, paths [][]string, most int) []byte {
	for _, path := range paths {
		v := valueAtPath(document.Trim(doc), path)
		switch document.KindOf(v) {
		case document.None, document.Null:
			continue
		case document.String:
			// No more is unquoted than can be shown: a character takes up to 12 bytes.
			v = v[1 : len(v)-1]
			v = document.AppendUnquoted(nil, v[:min(len(v), 12*(most+1))])
		case document.Object, document.Array, document.Number, document.Bool:
			v = v[:min(len(v), 12*(most+1))]
		}
		start := len(dst)
		if dst = appendMailText(dst, string(v), most); len(dst) > start {
			return dst
		}
	}
	return dst
}

// valueAtPath is the value at a path of object keys, nil when there is none.
func valueAtPath(v []byte, path []string) []byte {
	for _, name := range path {
		if document.KindOf(v) != document.Object {
			return nil
		}
		members := document.Members(v)
		for {
			key, start, end, ok := members.Next()
			if !ok {
				return nil
			}
			if string(key) == name {
				v = v[start:end]
				break
			}
		}
	}
	return v
}
