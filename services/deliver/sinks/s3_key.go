package sinks

import (
	"errors"
	"strings"
	"sync/atomic"
	"time"
)

// keyLayout is the key of objects in which things are left open:
//
//	firewall/{account}/{yyyy}/{MM}/{dd}/{HH}{mm}-{id}
//	└──────────── folders ───────────┘ └── name ──┘
//
// What is left open but the time and the id in the name parts the events: those of
// different folders or names go to different objects.
type keyLayout struct {
	prefix string
	tokens []s3KeyToken
	// name is the place of the first token behind the last slash.
	name int
	last atomic.Pointer[s3Keyed]
}

// s3KeyToken is a text as it stands, or something left open.
type s3KeyToken struct {
	text string
	open string
}

// timeForms are the parts of a time and how Go writes them.
var timeForms = map[string]string{"yyyy": "2006", "MM": "01", "dd": "02", "HH": "15", "mm": "04"}

var (
	errKeyBrace = errors.New("there is a brace that belongs to none of {type}, {source}, {account}, {region}, {yyyy}, {MM}, {dd}, {HH}, {mm} and {id}")
	errKeyID    = errors.New("{id} is not in the last part: objects would replace one another")
	errKeySlash = errors.New("a key begins with no slash, ends with none, and has no two in a row")
	errKeyLong  = errors.New("more than 512 bytes")
)

// mostKeyValue bounds what a value adds to a key, in bytes: S3 takes 1024 in all.
const mostKeyValue = 100

// parseKey reads a layout. The prefix goes before it as it stands.
func parseKey(prefix, text string) (*keyLayout, error) {
	if prefix = strings.TrimSuffix(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	l := &keyLayout{prefix: prefix}
	switch whole := prefix + text; {
	case len(whole) > 512:
		return nil, errKeyLong
	case text == "", strings.HasPrefix(whole, "/"), strings.HasSuffix(whole, "/"), strings.Contains(whole, "//"):
		return nil, errKeySlash
	}
	identified := false
	for rest := text; rest != ""; {
		before, after, found := strings.Cut(rest, "{")
		if strings.Contains(before, "}") {
			return nil, errKeyBrace
		}
		for before != "" { // each slash ends a token, so that the name begins with one
			part, more, slash := strings.Cut(before, "/")
			if slash {
				part += "/"
				l.name, identified = len(l.tokens)+1, false
			}
			l.tokens = append(l.tokens, s3KeyToken{text: part})
			before = more
		}
		if !found {
			break
		}
		name, more, closed := strings.Cut(after, "}")
		switch {
		case !closed:
			return nil, errKeyBrace
		case name == "id":
			identified = true
		case name == "type", name == "source", name == "account", name == "region", timeForms[name] != "":
		default:
			return nil, errKeyBrace
		}
		l.tokens = append(l.tokens, s3KeyToken{open: name})
		rest = more
	}
	if !identified {
		return nil, errKeyID
	}
	return l, nil
}

// s3Keyed is the last event that was asked about, and its answer.
type s3Keyed struct {
	kind, source, account, region string
	minute                        int64
	partition                     string
}

// partition names the objects that e may go to: their key, but that time and id in
// the name are still open. An event without a time counts as one of now.
func (l *keyLayout) partition(e *Event) string {
	at := e.Time
	if at == 0 {
		at = time.Now().UnixNano()
	}
	minute := time.Unix(0, at).Unix() / 60
	if k := l.last.Load(); k != nil && at > 0 && k.minute == minute && k.kind == e.Type && k.source == e.Source && k.account == e.Account && k.region == e.Region {
		return k.partition
	}
	var b strings.Builder
	b.WriteString(l.prefix)
	t := time.Unix(0, at).UTC()
	for i, token := range l.tokens {
		form := timeForms[token.open]
		switch {
		case token.open == "":
			b.WriteString(token.text)
		case token.open == "id", form != "" && i >= l.name:
			b.WriteString("{" + token.open + "}")
		case form != "":
			b.WriteString(t.Format(form))
		default:
			b.WriteString(keyValue(s3Value(e, token.open)))
		}
	}
	k := &s3Keyed{e.Type, e.Source, e.Account, e.Region, minute, b.String()}
	l.last.Store(k)
	return k.partition
}

// s3Value is what e puts where a key is left open.
func s3Value(e *Event, open string) string {
	switch open {
	case "type":
		return e.Type
	case "source":
		return e.Source
	case "account":
		return e.Account
	case "region":
		return e.Region
	}
	return ""
}

// keyOf completes the name of a partition. At is the time of the first event in Unix ns.
func keyOf(partition string, at int64, id string) string {
	slash := strings.LastIndexByte(partition, '/') + 1
	name := partition[slash:]
	t := time.Unix(0, at).UTC()
	for open, form := range timeForms {
		name = strings.ReplaceAll(name, "{"+open+"}", t.Format(form))
	}
	return partition[:slash] + strings.ReplaceAll(name, "{id}", id)
}

// keyValue makes a value fit for a key: characters that need no escaping anywhere,
// and no part that file systems read as something else. Source: Amazon S3 User Guide,
// object key naming guidelines.
func keyValue(s string) string {
	if s == "" {
		return "unknown"
	}
	out := []byte(s[:min(len(s), mostKeyValue)])
	for i, c := range out {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.' && i > 0:
		default:
			out[i] = '_'
		}
	}
	return string(out)
}
