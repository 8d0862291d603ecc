package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/services/demo/feed"
)

// Set is one kind of work: what there is to read, how penstock is told to read it, and
// what the floor has to know of it.
type Set struct {
	Name string
	// About says what it is, in a few words.
	About string
	// Make generates it; scale 1 is all of it.
	Make func(scale float64) (*Work, error)
	// Source is the rest of penstock's source of the type sqs, as YAML in flow style.
	Source string
	// Header, Split and ID are all that the floor knows of a format: how many lines
	// precede the records, where a record ends, and whether what identifies it is there.
	Header int
	Split  bufio.SplitFunc // nil: a body is one record
	ID     func(record []byte) bool
	// Layout says what comes out of penstock of a row of text; nil: records are JSON
	// objects, which the floor posts as they came.
	Layout *Layout
	// Limit is the goal for penstock's CPU by that of the floor; 0: none.
	Limit float64
}

// Work is a generated set.
type Work struct {
	// Keys and Objects are what is in the bucket; each is announced by one message.
	Keys    []string
	Objects [][]byte
	// Bodies are messages that are events themselves, instead of objects.
	Bodies []string
	// Records in all of it, and different ones among them.
	Records, Unique int
	// Raw is the size of the events before compression, in bytes, about.
	Raw int64
}

// Pieces are the objects or messages.
func (w *Work) Pieces() int { return max(len(w.Objects), len(w.Bodies)) }

// Packed is the size of what is read, in bytes.
func (w *Work) Packed() (n int64) {
	for _, object := range w.Objects {
		n += int64(len(object))
	}
	for _, body := range w.Bodies {
		n += int64(len(body))
	}
	return n
}

// divide takes the first n pieces off a set whose pieces have as many records each, and
// none twice.
func (w *Work) divide(n int) (first, rest *Work) {
	if n <= 0 {
		return &Work{}, w
	}
	part := func(from, to int) *Work {
		p := &Work{}
		if len(w.Objects) > 0 {
			p.Keys, p.Objects = w.Keys[from:to], w.Objects[from:to]
		} else {
			p.Bodies = w.Bodies[from:to]
		}
		p.Records = w.Records / w.Pieces() * (to - from)
		p.Unique, p.Raw = p.Records, w.Raw/int64(w.Pieces())*int64(to-from)
		return p
	}
	return part(0, n), part(n, w.Pieces())
}

// sets are all there are. A set more is an entry more.
var sets = []Set{
	{
		Name: "million", About: "1 M CloudTrail events in 500 objects",
		Make:   trail(500, 2000, 0.01),
		Source: readObjects, Split: splitTrail, ID: contains(`"eventID":"`),
	},
	{
		Name: "huge", About: "one object of 500 k CloudTrail events",
		Make: func(scale float64) (*Work, error) {
			return generate(feed.Options{Objects: 1, RecordsPerObject: feed.Fixed(share(500_000, scale)), DuplicateShare: 0.01})
		},
		Source: readObjects, Split: splitTrail, ID: contains(`"eventID":"`),
	},
	{
		Name: "tiny", About: "20 k objects of 5 CloudTrail events",
		Make:   trail(20_000, 5, 0.01),
		Source: readObjects, Split: splitTrail, ID: contains(`"eventID":"`),
	},
	{
		Name: "vpc", About: "1 M VPC flow log rows in 100 objects",
		Make:   rows(100, 10_000, feed.BulkVPCFlow),
		Source: readObjects, Header: 1, Split: bufio.ScanLines, ID: field(3, ' '), // the interface
		Layout: &Layout{
			Type: "cloud.aws.vpc.unknown", Columns: vpcColumns, Separator: ' ', Account: 1, Region: 3, Time: seconds(11),
		},
		Limit: 2.5,
	},
	{
		Name: "cloudfront", About: "500 k CloudFront access log rows in 100 objects",
		Make:   rows(100, 5000, feed.BulkCloudFront),
		Source: readObjects, Header: 2, Split: bufio.ScanLines, ID: field(15, '\t'), // the request
		Layout: &Layout{
			Type: "cloud.aws.cloudfront.unknown", Columns: cloudFrontColumns, Separator: '\t', Encoded: true,
			Kind: "cloudfront", ID: 14, Account: -1, Region: -1, Time: dateAndTime,
		},
		Limit: 2.5,
	},
	{
		Name: "umbrella", About: "500 k Umbrella DNS log rows in 100 objects",
		Make:   rows(100, 5000, feed.BulkUmbrellaDNS),
		Source: readObjects, Split: bufio.ScanLines, ID: field(2, ','), // the identity
		Layout: &Layout{
			Type: "sig.cisco.umbrella.dns", Columns: umbrellaColumns, Separator: ',', Quoted: true, Account: -1, Region: -1, Time: zoneless,
		},
		Limit: 2.5,
	},
	{
		Name: "voiso", About: "300 k Voiso events in as many SQS messages",
		Make:   queued(300_000, feed.BulkVoiso),
		Source: readBodies("voiso"), ID: contains(`"event":"`),
		Limit: 2.5,
	},
	{
		Name: "eventbridge", About: "200 k EventBridge events in as many SQS messages",
		Make:   queued(200_000, feed.BulkEventBridge),
		Source: readBodies("eventbridge"), ID: contains(`"id":"`),
		Limit: 2.5,
	},
}

// even is no part of a report: its pieces are alike, as lines need them.
var even = Set{
	Name: "even", About: "1 M CloudTrail events in 1,000 objects, none twice",
	Make:   trail(1000, 1000, 0),
	Source: readObjects, Split: splitTrail, ID: contains(`"eventID":"`),
}

// setNamed finds a set.
func setNamed(name string) (Set, error) {
	if name == even.Name {
		return even, nil
	}
	i := slices.IndexFunc(sets, func(s Set) bool { return s.Name == name })
	if i < 0 {
		names := make([]string, len(sets))
		for k, s := range sets {
			names[k] = s.Name
		}
		return Set{}, fmt.Errorf("no set is called %q; there are %s", name, strings.Join(names, ", "))
	}
	return sets[i], nil
}

const bucket = "bench-trail"

// readObjects reads the objects that messages announce.
const readObjects = "buckets: [" + bucket + "], wait_time: 5s"

// readBodies reads messages that are events of a format.
func readBodies(format string) string {
	return "body: events, format: {type: " + format + "}, wait_time: 1s, max_receivers: 16"
}

// share is a part of n, at least 1.
func share(n int, scale float64) int { return max(1, int(float64(n)*scale)) }

// trail makes objects with as many CloudTrail events each.
func trail(objects, records int, duplicates float64) func(scale float64) (*Work, error) {
	return func(scale float64) (*Work, error) {
		return generate(feed.Options{Objects: share(objects, scale), RecordsPerObject: feed.Fixed(records), DuplicateShare: duplicates})
	}
}

func generate(o feed.Options) (*Work, error) {
	o.Seed, o.Bucket, o.Level = 1, bucket, 6
	set := feed.CloudTrail(o)
	w := &Work{Keys: make([]string, set.Len()), Objects: make([][]byte, set.Len()), Unique: set.Unique()}
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for i := range w.Objects {
		w.Records += set.Records(i)
		g.Go(func() error {
			var b bytes.Buffer
			if err := set.WriteGzip(&b, i); err != nil {
				return err
			}
			w.Keys[i], w.Objects[i] = set.Key(i), bytes.Clone(b.Bytes())
			return nil
		})
	}
	sample, size := min(set.Records(0), 2000), int64(0)
	for k := range sample {
		size += int64(len(set.Record(nil, 0, k))) + 1
	}
	w.Raw = size * int64(w.Records) / int64(sample)
	return w, g.Wait()
}

// rows makes objects with as many rows of text each.
func rows(objects, each int, object func(seed uint64, i, rows int) feed.Object) func(scale float64) (*Work, error) {
	return func(scale float64) (*Work, error) {
		w := &Work{}
		for i := range share(objects, scale) {
			o := object(1, i, each)
			w.Keys, w.Objects = append(w.Keys, o.Key), append(w.Objects, o.Body)
			w.Records += o.Records
			if i == 0 {
				raw, err := unpacked(o.Body)
				if err != nil {
					return nil, err
				}
				w.Raw = raw
			}
		}
		w.Raw *= int64(len(w.Objects))
		w.Unique = w.Records
		return w, nil
	}
}

// unpacked is the size of a gzip file before compression.
func unpacked(body []byte) (int64, error) {
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	return io.Copy(io.Discard, z)
}

// queued makes messages that are an event each.
func queued(n int, bodies func(seed uint64, n int) []string) func(scale float64) (*Work, error) {
	return func(scale float64) (*Work, error) {
		w := &Work{Bodies: bodies(1, share(n, scale))}
		for _, body := range w.Bodies {
			w.Raw += int64(len(body)) + 1
		}
		w.Records, w.Unique = len(w.Bodies), len(w.Bodies)
		return w, nil
	}
}
