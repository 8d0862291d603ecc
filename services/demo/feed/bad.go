package feed

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/services/demo/cloud"
)

// odd builds inputs that are not as they should be. Each step has objects of its
// own, in a set without duplicates, so that steps can be combined at will.
type odd struct {
	seed uint64
	set  *Set
	next int // object of set
}

// good is how many records surround a mishap.
const good = 40

func newOdd(seed uint64) *odd {
	return &odd{seed: seed, set: CloudTrail(Options{
		Seed: seed ^ 0x0dd, Objects: 1000, RecordsPerObject: Fixed(good), Start: CloudTrail(Options{}).o.Start.AddDate(0, 0, 1),
	})}
}

// bad are the builders by name.
var bad = []struct {
	name  string
	build func(*odd) Step
}{
	{"empty_object", (*odd).emptyObject},
	{"folder_key", (*odd).folderKey},
	{"not_gzip", (*odd).notGzip},
	{"plain_json", (*odd).plainJSON},
	{"trailing_garbage", (*odd).trailingGarbage},
	{"multi_member", (*odd).multiMember},
	{"truncated_gzip", (*odd).truncated},
	{"bomb", (*odd).bomb},
	{"broken_record", (*odd).brokenRecord},
	{"broken_structure", (*odd).brokenStructure},
	{"huge_record", (*odd).hugeRecord},
	{"invalid_utf8", (*odd).invalidUTF8},
	{"duplicate_json_keys", (*odd).duplicateJSONKeys},
	{"digest_key", (*odd).digestKey},
	{"digest_content", (*odd).digestContent},
	{"removed", (*odd).removed},
	{"test_event", (*odd).testEvent},
	{"missing_key", (*odd).missingKey},
	{"access_denied", (*odd).accessDenied},
	{"forged_bucket", (*odd).forgedBucket},
	{"unknown_notice", (*odd).unknownNotice},
	{"sns", (*odd).sns},
	{"sns_raw", (*odd).snsRaw},
	{"eventbridge", (*odd).eventBridge},
	{"eventbridge_in_sns", (*odd).eventBridgeInSNS},
	{"several_records", (*odd).severalRecords},
	{"same_key_twice", (*odd).sameKeyTwice},
	{"escaped_key", (*odd).escapedKey},
}

// BadNames lists the inputs that [Bad] knows.
func BadNames() []string {
	names := make([]string, len(bad))
	for i := range bad {
		names[i] = bad[i].name
	}
	return names
}

// Bad builds the steps of that names, all of them when none is given, each with
// its exact outcome (but see AtLeast). Steps of one call share no event. It
// panics on a name that BadNames does not list. All of them take about a second.
func Bad(seed uint64, names ...string) []Step {
	if len(names) == 0 {
		names = BadNames()
	}
	o := newOdd(seed)
	steps := make([]Step, 0, len(names))
	for _, name := range names {
		i := slices.Index(BadNames(), name)
		if i < 0 {
			panic("feed: no bad input is called " + name)
		}
		o.next = i * 8 // so that a step is the same, whichever others there are
		st := bad[i].build(o)
		st.Name = name
		steps = append(steps, st)
	}
	return steps
}

// fresh returns an object whose records the caller may spoil.
func (o *odd) fresh() (Object, [][]byte) {
	i := o.next
	o.next++
	obj := Object{Bucket: demoBucket, Key: o.set.Key(i), Records: good}
	var records [][]byte
	for id := range o.set.EventIDs(i) {
		records = append(records, o.set.Record(nil, i, len(records)))
		obj.EventIDs = append(obj.EventIDs, id)
	}
	return obj, records
}

// whole returns an object as it should be.
func (o *odd) whole() Object {
	obj, records := o.fresh()
	obj.Body = zip(file(records))
	return obj
}

// file is the JSON of an object.
func file(records [][]byte) []byte {
	return slices.Concat([]byte(`{"Records":[`), bytes.Join(records, []byte(",")), []byte("]}"))
}

// zip is one gzip member.
func zip(b []byte) []byte {
	level := gzip.DefaultCompression
	if len(b) > 1<<20 {
		level = gzip.NoCompression // it is the same to a reader, and quick
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		panic(err) // the level is in range
	}
	if _, err := z.Write(b); err != nil {
		panic(err) // a buffer takes everything
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// one makes the step of one object and its notice.
func one(obj Object) Step { return step("", []Object{obj}, notices(cloud.Direct, obj)...) }

// refused is a step that yields nothing but one refusal.
func refused(kind string, obj *Object, m ...Message) Step {
	var st Step
	if obj != nil {
		st = one(*obj)
	} else {
		st = step("", nil, m...)
		for i := range m {
			if m[i].Event == "" {
				st.Want.Pulls += len(m[i].About)
			}
		}
	}
	st.Want.Quarantined[kind]++
	return st
}

// Source: formats F-6, zero-size objects are skipped.
func (o *odd) emptyObject() Step {
	obj, _ := o.fresh()
	obj.Body, obj.Records, obj.EventIDs = []byte{}, 0, nil
	st := one(obj)
	st.Want.Ignored[EmptyObject]++
	return st
}

func (o *odd) folderKey() Step {
	obj, _ := o.fresh()
	obj.Key, obj.Body, obj.Records, obj.EventIDs = "AWSLogs/"+cloud.AccountID+"/CloudTrail/", []byte{}, 0, nil
	st := one(obj)
	st.Want.Ignored[EmptyObject]++
	return st
}

// An error page that something stored under a log's name.
func (o *odd) notGzip() Step {
	obj, _ := o.fresh()
	obj.Body = []byte(`<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>`)
	obj.Records, obj.EventIDs = 0, nil
	return refused(Unreadable, &obj)
}

// JSON that is not compressed although its name says so. Source: formats F-0,
// the bytes decide.
func (o *odd) plainJSON() Step {
	obj, records := o.fresh()
	obj.Body = file(records)
	return one(obj)
}

func (o *odd) trailingGarbage() Step {
	obj := o.whole()
	obj.Body = append(obj.Body, "--- end of upload ---\n"...)
	st := one(obj)
	st.Want.Quarantined[TrailingGarbage]++
	return st
}

// Three gzip members, the cuts in the middle of records.
func (o *odd) multiMember() Step {
	obj, records := o.fresh()
	b := file(records)
	third := len(b) / 3
	obj.Body = slices.Concat(zip(b[:third]), zip(b[third:2*third]), zip(b[2*third:]))
	return one(obj)
}

// truncated ends early: its first records are whole, of the next one not a byte
// can be read, whatever the decompressor.
func (o *odd) truncated() Step {
	obj, records := o.fresh()
	const whole = 25
	b := file(records)
	at := len(`{"Records":[`) + len(bytes.Join(records[:whole], []byte(",")))
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	write := func(p []byte) {
		if _, err := z.Write(p); err != nil {
			panic(err) // a buffer takes everything
		}
	}
	write(b[:at])
	if err := z.Flush(); err != nil { // all bytes so far can be read from here
		panic(err)
	}
	cut := out.Len() + 12 // inside the head of the next block
	write(b[at:])
	if err := z.Close(); err != nil {
		panic(err)
	}
	obj.Body = bytes.Clone(out.Bytes()[:cut])
	obj.Records, obj.EventIDs = whole, obj.EventIDs[:whole]
	st := one(obj)
	st.Name = "an object that is cut off"
	st.Want.Quarantined[Truncated]++
	return st
}

// BombSize is what the bomb expands to, in bytes: from about 300 KB.
const BombSize = 300 << 20

// bomb has good records before the blanks that blow it up. They arrive, because
// a reader of streams finds out later; those behind the blanks do not.
func (o *odd) bomb() Step {
	obj, records := o.fresh()
	const before = 20
	head := slices.Concat([]byte(`{"Records":[`), bytes.Join(records[:before], []byte(",")))
	tail := slices.Concat([]byte(","), bytes.Join(records[before:], []byte(",")), []byte("]}"))

	// Once the window is full of blanks, a MiB more always compresses to the same
	// bytes: there is no need to compress it 300 times.
	var deflated bytes.Buffer
	z, err := flate.NewWriter(&deflated, flate.BestSpeed)
	if err != nil {
		panic(err) // the level is in range
	}
	sum := crc32.NewIEEE()
	write := func(p []byte) (compressed []byte) {
		at := deflated.Len()
		if _, err := z.Write(p); err != nil {
			panic(err) // a buffer takes everything
		}
		if err := z.Flush(); err != nil {
			panic(err)
		}
		_, _ = sum.Write(p) // never fails
		return bytes.Clone(deflated.Bytes()[at:])
	}
	blanks := bytes.Repeat([]byte(" "), 1<<20)
	write(head)
	write(blanks)
	again := write(blanks)
	for range BombSize>>20 - 2 {
		deflated.Write(again)
		_, _ = sum.Write(blanks)
	}
	write(tail)
	if err := z.Close(); err != nil {
		panic(err)
	}
	size := uint32(len(head) + BombSize + len(tail))
	obj.Body = slices.Concat([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflated.Bytes(),
		binary.LittleEndian.AppendUint32(nil, sum.Sum32()), binary.LittleEndian.AppendUint32(nil, size))
	obj.Records, obj.EventIDs = before, obj.EventIDs[:before]
	st := one(obj)
	st.Want.Quarantined[Bomb]++
	return st
}

// spoil replaces the record in the middle.
func (o *odd) spoil(kind string, with func(record []byte) []byte) Step {
	obj, records := o.fresh()
	records[good/2] = with(records[good/2])
	obj.Body = zip(file(records))
	obj.EventIDs = slices.Delete(obj.EventIDs, good/2, good/2+1)
	st := one(obj)
	st.Want.Quarantined[kind]++
	return st
}

// brokenRecord has a value without quotes: braces and quotes are in balance, so
// where the record ends is beyond doubt.
func (o *odd) brokenRecord() Step {
	st := o.spoil(BadRecord, func(r []byte) []byte {
		return bytes.Replace(r, []byte(`"eventVersion":"1.11"`), []byte(`"eventVersion":1.11.0`), 1)
	})
	st.Name = "an object with a corrupt record"
	return st
}

// brokenStructure loses the end of a record in the middle, quote and braces and
// all: a reader has to find the next record by itself. It may lose neighbours.
func (o *odd) brokenStructure() Step {
	obj, records := o.fresh()
	r := records[good/2]
	records[good/2] = r[:bytes.Index(r, []byte(`"eventSource":"`))+len(`"eventSource":"s`)]
	obj.Body = zip(file(records))
	obj.EventIDs = obj.EventIDs[:good/2] // those before the break are safe
	st := one(obj)
	st.Want.Quarantined[BadRecord]++
	st.AtLeast = true
	return st
}

// hugeRecord has a record of 20 MiB between good ones.
func (o *odd) hugeRecord() Step {
	return o.spoil(RecordTooLarge, func(r []byte) []byte {
		fill := newRand(o.seed, saltPool, 20, 0)
		return slices.Concat(r[:len(r)-1], []byte(`,"padding":"`), fill.appendHex(make([]byte, 0, 20<<20), 20<<20), []byte(`"}`))
	})
}

// invalidUTF8 has a string that is not UTF-8. It is an event all the same.
// Source: features DEV-143.
func (o *odd) invalidUTF8() Step {
	obj, records := o.fresh()
	records[good/2] = bytes.Replace(records[good/2], []byte(`"userAgent":"`), []byte("\"userAgent\":\"caf\xe9 \xff\xfe "), 1)
	obj.Body = zip(file(records))
	return one(obj)
}

// duplicateJSONKeys has a record that names a member twice, with the same value.
// It is an event like any other.
func (o *odd) duplicateJSONKeys() Step {
	obj, records := o.fresh()
	r := records[good/2]
	records[good/2] = fmt.Appendf(nil, `%s,"eventID":"%s","awsRegion":"%s"}`, r[:len(r)-1], obj.EventIDs[good/2], o.set.Region(o.next-1))
	obj.Body = zip(file(records))
	return one(obj)
}

// digestBody is a digest file. Source: formats F-9.
func (o *odd) digestBody(key string) []byte {
	return fmt.Appendf(nil, `{"awsAccountId":"%s","digestStartTime":"2026-01-05T00:00:00Z","digestEndTime":"2026-01-05T01:00:00Z","digestS3Bucket":"%s","digestS3Object":"%s",`+
		`"digestSignatureAlgorithm":"SHA256withRSA","newestEventTime":"2026-01-05T00:59:50Z","oldestEventTime":"2026-01-05T00:00:10Z","previousDigestS3Bucket":null,"previousDigestSignature":null,`+
		`"logFiles":[{"s3Bucket":"%s","s3Object":"%s","hashValue":"%064x","hashAlgorithm":"SHA-256","newestEventTime":"2026-01-05T00:04:50Z","oldestEventTime":"2026-01-05T00:00:10Z"}]}`,
		cloud.AccountID, demoBucket, key, demoBucket, o.set.Key(0), uint64(math.MaxUint64))
}

func (o *odd) digestKey() Step {
	obj, _ := o.fresh()
	obj.Key = o.set.key(o.next-1, "CloudTrail-Digest", ".json.gz")
	obj.Body, obj.Records, obj.EventIDs = zip(o.digestBody(obj.Key)), 0, nil
	st := one(obj)
	st.Want.Ignored[Digest]++
	return st
}

// digestContent is a digest under the key of a log.
func (o *odd) digestContent() Step {
	obj, _ := o.fresh()
	obj.Body, obj.Records, obj.EventIDs = zip(o.digestBody(obj.Key)), 0, nil
	st := one(obj)
	st.Want.Ignored[Digest]++
	return st
}

func (o *odd) removed() Step {
	obj := o.whole()
	about := []Ref{{obj.Bucket, obj.Key}}
	st := step("", []Object{obj},
		Message{Event: "ObjectRemoved:Delete", About: about},
		Message{Event: "ObjectRemoved:DeleteMarkerCreated", About: about, Shape: cloud.EventBridge},
		Message{Event: "ObjectTagging:Put", About: about, Shape: cloud.SNS})
	st.Want.Ignored[Removed] = 3
	return st
}

func (o *odd) testEvent() Step {
	st := step("the test event of a new notification", nil, Message{Event: "s3:TestEvent", About: []Ref{{Bucket: demoBucket}}})
	st.Want.Ignored[TestEvent]++
	return st
}

func (o *odd) missingKey() Step {
	obj, _ := o.fresh()
	st := refused(MissingKey, nil, notices(cloud.Direct, obj)...)
	st.Name = "a notice for a key that is missing"
	return st
}

func (o *odd) accessDenied() Step {
	obj := o.whole()
	obj.Denied, obj.Records, obj.EventIDs = true, 0, nil
	return refused(AccessDenied, &obj)
}

// forgedBucket names a bucket that is not on the list, with an object that could
// be read: it must not be.
func (o *odd) forgedBucket() Step {
	obj := o.whole()
	obj.Bucket = "somebody-elses-bucket"
	obj.Records, obj.EventIDs = 0, nil
	return refused(ForgedBucket, &obj)
}

func (o *odd) unknownNotice() Step {
	st := step("", nil,
		Message{Raw: `{"hello":"world","nested":{"Records":"none"}}`},
		Message{Raw: `{"Records":[]}`},
		Message{Raw: "not JSON at all"},
		Message{Raw: `{"alarm":"ok"}`, Wrapped: true})
	st.Want.Quarantined[UnknownNotice] = 4
	return st
}

func (o *odd) sns() Step {
	obj := o.whole()
	return step("", []Object{obj}, notices(cloud.SNS, obj)...)
}

func (o *odd) snsRaw() Step {
	obj := o.whole()
	return step("", []Object{obj}, notices(cloud.SNSRaw, obj)...)
}

func (o *odd) eventBridge() Step {
	obj := o.whole()
	return step("", []Object{obj}, notices(cloud.EventBridge, obj)...)
}

func (o *odd) eventBridgeInSNS() Step {
	obj := o.whole()
	return step("", []Object{obj}, Message{Shape: cloud.EventBridge, Wrapped: true, About: []Ref{{obj.Bucket, obj.Key}}})
}

// severalRecords is one message about two good objects, with one that is missing
// between them.
func (o *odd) severalRecords() Step {
	a, b := o.whole(), o.whole()
	lost, _ := o.fresh()
	st := step("", []Object{a, b}, together(a, lost, b))
	st.Want.Pulls++
	st.Want.Quarantined[MissingKey]++
	return st
}

func (o *odd) sameKeyTwice() Step {
	obj := o.whole()
	return step("", []Object{obj}, append(notices(cloud.Direct, obj), together(obj, obj))...)
}

// escapedKey has characters that notices encode, direct and through EventBridge.
func (o *odd) escapedKey() Step {
	a, b := o.whole(), o.whole()
	a.Key = "team a+b/100%/ü=&?#/" + a.Key
	b.Key = "team a+b/100%/ü=&?#/" + b.Key
	return step("", []Object{a, b}, append(notices(cloud.Direct, a), notices(cloud.EventBridge, b)...)...)
}
