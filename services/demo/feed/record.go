package feed

import (
	"encoding/binary"
	"math/bits"
	"strconv"
	"strings"
	"sync"
	"time"
)

// random is splitmix64: small, fast, and the same everywhere and for ever.
type random struct{ state uint64 }

// Salts keep the uses of one seed apart.
const (
	saltRecord uint64 = iota + 1
	saltEventID
	saltDuplicate
	saltKey
	saltPair
	saltPool
	saltSlot
	saltCaller
	saltBurst
	saltVPC
	saltCloudFront
	saltGuardDuty
	saltUmbrella
	saltOPSWAT
	saltMetaDefender
	saltVoiso
	saltCensornet
	saltEventBridge
	saltSecurityHub
	saltApplication
)

func newRand(seed, salt, a, b uint64) random {
	r := random{seed ^ salt*0xd6e8feb86659fd93}
	r.state = r.next() ^ a*0xa0761d6478bd642f
	r.state = r.next() ^ b*0xe7037ed1a0b428db
	return r
}

func (r *random) next() uint64 {
	r.state += 0x9e3779b97f4a7c15
	z := r.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// below returns a number from 0 to n-1.
func (r *random) below(n int) int {
	hi, _ := bits.Mul64(r.next(), uint64(n))
	return int(hi)
}

// skewed returns a number from 0 to n-1, small ones more often: about as
// Zipf's law has it.
func (r *random) skewed(n int) int {
	total := 0.0
	for i := range n {
		total += 1 / float64(i+1)
	}
	x := float64(r.next()>>11) / (1 << 53) * total
	for i := range n {
		if x -= 1 / float64(i+1); x < 0 {
			return i
		}
	}
	return n - 1
}

// guid returns a GUID of version 4.
func (r *random) guid() (id EventID) {
	binary.BigEndian.PutUint64(id[:], r.next())
	binary.BigEndian.PutUint64(id[8:], r.next())
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

func (r *random) letters(n int) string {
	return string(r.appendFrom(nil, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", n))
}

// appendFrom appends n characters of an alphabet.
func (r *random) appendFrom(dst []byte, alphabet string, n int) []byte {
	for range n {
		dst = append(dst, alphabet[r.below(len(alphabet))])
	}
	return dst
}

// appendHex appends n lower case hex digits.
func (r *random) appendHex(dst []byte, n int) []byte {
	for n > 0 {
		v := r.next()
		for range min(n, 16) {
			dst = append(dst, "0123456789abcdef"[v&15])
			v >>= 4
		}
		n -= min(n, 16)
	}
	return dst
}

// A template is a record with fields in place of what differs.
type template struct {
	source string
	parts  []part
}

type part struct {
	text  string
	field field // 0 = none
}

// field is a value that is put between the texts of a template.
type field uint8

// kit is what the templates are made of, compiled once.
type kit struct {
	templates []template
	// slots is the distribution: a random slot holds an index of templates.
	slots [4096]uint16
	pools [fieldCount]pool
}

// pool is the values of a field that come from a list, the first more often.
// slots makes a draw cheap.
type pool struct {
	values []string
	slots  [256]uint16
	leader field // whose draw counts, so that a role keeps its id
}

var compiled = sync.OnceValue(compile)

func compile() *kit {
	k := &kit{}
	for f, values := range pooled() {
		leader, tied := follows[f]
		if !tied {
			leader = f
		}
		p := pool{values: values, leader: leader}
		r := newRand(0, saltSlot, uint64(leader), 0)
		for i := range p.slots {
			p.slots[i] = uint16(r.skewed(len(values)))
		}
		k.pools[f] = p
	}
	weights := k.assemble()
	total := 0.0
	for _, w := range weights {
		total += w
	}
	slot, sum := 0, 0.0
	for i, w := range weights {
		sum += w
		for ; slot < len(k.slots) && float64(slot) < sum/total*float64(len(k.slots)); slot++ {
			k.slots[slot] = uint16(i)
		}
	}
	return k
}

// parse cuts a text at its ${field} marks. It panics on an unknown name.
func parse(source, text string) template {
	t := template{source: source}
	for {
		before, rest, found := strings.Cut(text, "${")
		if !found {
			t.parts = append(t.parts, part{text: text})
			return t
		}
		name, after, _ := strings.Cut(rest, "}")
		f, known := fieldNames[name]
		if !known {
			panic("feed: template of " + source + " names the unknown field " + name)
		}
		t.parts = append(t.parts, part{before, f})
		text = after
	}
}

// generator makes the records of one object. It is not for concurrent use.
type generator struct {
	set    *Set
	kit    *kit
	object int
	pair   pair
	first  int64 // Unix time of the first event
	span   int64 // seconds from the first to the last
	count  int64 // records
	day    int64 // whose date is kept
	date   [11]byte
}

func (s *Set) generator(i int) generator {
	return generator{
		set: s, kit: compiled(), object: i, pair: s.pairs[i%cycle], day: -1,
		first: s.delivered(i).Unix() - 300, span: 285, count: int64(max(1, s.Records(i))),
	}
}

// draw is what one record is made with. A pooled field that occurs twice in a
// record has the same value.
type draw struct {
	random
	choice [(fieldCount + 7) / 8 * 8]uint8 // slot of each pooled field
	at     int64                           // eventTime, Unix
	id     EventID
}

// minRecord and maxRecord are the limits of a record's length in bytes.
const minRecord, maxRecord = 1200, 1600

// record appends record k, which must not be a duplicate.
func (g *generator) record(dst []byte, k int) []byte {
	d := draw{random: newRand(g.set.o.Seed, saltRecord, uint64(g.object), uint64(k)), id: g.set.eventID(g.object, k)}
	v := d.next()
	d.at = g.first + g.span*int64(k)/g.count + int64(v&7)
	// Some dozens of callers make all the events of an object, a few of them most,
	// in bursts, and each mostly repeats the same four calls. So it is in real
	// logs, which is why they compress so well.
	who := v
	if v>>36&3 != 0 {
		burst := newRand(g.set.o.Seed, saltBurst, uint64(g.object), uint64(k/8))
		who = burst.next()
	}
	caller := newRand(g.set.o.Seed, saltCaller, uint64(g.object), (who>>16&63)*(who>>24&63)>>6)
	slot := caller.next() >> (v >> 40 & 3 * 12) & 4095
	for i := 0; i < len(d.choice); i += 8 {
		binary.LittleEndian.PutUint64(d.choice[i:], caller.next())
	}
	if v>>32&7 == 0 { // something else for once
		slot = v >> 52
		for i := int(afterCaller); i < int(fieldCount); i++ {
			d.choice[i] += byte(v >> 44)
		}
	}
	t := &g.kit.templates[g.kit.slots[slot]]
	start := len(dst)
	for i := range t.parts {
		p := &t.parts[i]
		dst = append(dst, p.text...)
		if p.field != 0 {
			dst = g.value(dst, &d, p.field)
		}
	}
	dst = g.pad(dst, &d, minRecord+int(v>>8&255)-(len(dst)-start))
	return append(dst, '}')
}

// date and time of day, RFC 3339 in UTC.
func (g *generator) appendTime(dst []byte, at int64) []byte {
	if day := at / 86400; day != g.day {
		g.day = day
		copy(g.date[:], time.Unix(at, 0).UTC().Format("2006-01-02T"))
	}
	sec := at % 86400
	two := func(n int64) { dst = append(dst, byte('0'+n/10), byte('0'+n%10)) }
	dst = append(dst, g.date[:]...)
	two(sec / 3600)
	dst = append(dst, ':')
	two(sec / 60 % 60)
	dst = append(dst, ':')
	two(sec % 60)
	return append(dst, 'Z')
}

// pad adds the optional event context when n more bytes are wanted; it may add
// up to 100 more than that.
func (g *generator) pad(dst []byte, d *draw, n int) []byte {
	if n <= 0 {
		return dst
	}
	dst = append(dst, `,"eventContext":{"requestContext":{`...)
	n -= len(`,"eventContext":{"requestContext":{},"tagContext":{"principalTags":{}}}`)
	item := func(list []contextKey, i int, sep bool) {
		if sep {
			dst = append(dst, ',')
		}
		before := len(dst)
		dst = append(append(append(dst, '"'), list[i].name...), `":"`...)
		dst = g.value(dst, d, list[i].value)
		dst = append(dst, '"')
		n -= len(dst) - before + 1
	}
	i := 0
	for ; i < len(requestContext) && n > 0; i++ {
		item(requestContext, i, i > 0)
	}
	dst = append(dst, `},"tagContext":{"principalTags":{`...)
	for i = 0; i < len(principalTags) && (n > 0 || i == 0); i++ {
		item(principalTags, i, i > 0)
	}
	return append(dst, "}}}"...)
}

func (g *generator) value(dst []byte, d *draw, f field) []byte {
	if p := &g.kit.pools[f]; p.values != nil {
		return append(dst, p.values[p.slots[d.choice[p.leader]]]...)
	}
	switch f {
	case fieldEventID:
		return d.id.append(dst)
	case fieldTime:
		return g.appendTime(dst, d.at)
	case fieldCreated:
		return g.appendTime(dst, g.first-int64(d.choice[fieldSession])*13-60)
	case fieldEpoch:
		return strconv.AppendInt(dst, d.at*1000+int64(d.choice[fieldEpoch]), 10)
	case fieldAccount:
		return append(dst, g.pair.account...)
	case fieldRegion:
		return append(dst, g.pair.region...)
	case fieldGUID:
		id := d.guid()
		return id.append(dst)
	case fieldHex8:
		return d.appendHex(dst, 8)
	case fieldHex17:
		return d.appendHex(dst, 17)
	case fieldHex64:
		return d.appendHex(dst, 64)
	case fieldToken16:
		return d.appendFrom(dst, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16)
	case fieldHostID:
		return append(d.appendFrom(dst, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", 75), '=')
	case fieldNumber:
		return strconv.AppendUint(dst, d.next()>>48, 10)
	case fieldSmall:
		return strconv.AppendUint(dst, 1+d.next()>>60, 10)
	default:
		panic("feed: a field has neither a list nor a rule")
	}
}
