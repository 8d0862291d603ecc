package feed

import (
	"context"
	"slices"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
)

// Kinds of input that yields no event. They are words of this package: which
// reason code a stage gives them is for the caller to know.
const (
	// Quarantined: somebody has to look at them.
	BadRecord       = "bad_record"       // not JSON
	RecordTooLarge  = "record_too_large" // above 16 MiB
	Truncated       = "truncated"        // the object ends before its end
	TrailingGarbage = "trailing_garbage" // bytes after the last gzip member
	Bomb            = "bomb"             // expands more than 200 times
	Unreadable      = "unreadable"       // neither gzip nor JSON
	MissingKey      = "missing_key"      // a notice for an object that is not there
	AccessDenied    = "access_denied"    // an object that may not be read
	UnknownNotice   = "unknown_notice"   // a message body of no known shape
	ForgedBucket    = "forged_bucket"    // a notice for a bucket of somebody else

	// Ignored: acknowledged and counted.
	TestEvent   = "test_event"
	Removed     = "removed"      // events other than ObjectCreated
	Digest      = "digest"       // CloudTrail digest files
	EmptyObject = "empty_object" // no bytes, or a key that ends in a slash
)

// Counts is what must come out of a step or a scenario.
type Counts struct {
	// Messages are put into the queue.
	Messages int
	// Pulls are the records of notifications that ask for an object. An object
	// that is announced twice is pulled twice.
	Pulls int
	// Objects are those that hold records and can be read, each once.
	Objects int
	// Records are read over all pulls, bad ones included; Events are the good ones.
	Records, Events int
	// Unique are the events with different ids, Duplicates the others.
	Unique, Duplicates int
	// Quarantined counts records, objects and messages that are refused, by kind.
	Quarantined map[string]int
	// Ignored counts objects and messages that are skipped on purpose, by kind.
	Ignored map[string]int
}

// Step is one thing that happens: objects are stored, then messages are sent.
type Step struct {
	Name     string
	Objects  []Object
	Messages []Message
	// Want is what comes of this step alone.
	Want Counts
	// AtLeast tells that Records and Quarantined depend on where a reader finds
	// its way again, and that Events and Unique are lower bounds.
	AtLeast bool

	ids []EventID // of the events, once per pull
}

// Message is one body in the queue.
type Message struct {
	// Raw is the body. When it is empty, the body is a notice about About.
	Raw string
	// Shape of the notice.
	Shape cloud.Shape
	// Wrapped puts the body into an SNS envelope of its own.
	Wrapped bool
	// Event is its name. Default: ObjectCreated:Put. "s3:TestEvent" makes a test
	// event of the first object's bucket.
	Event string
	// About are the objects, stored or not. With EventBridge there is one.
	About []Ref
}

// Ref names an object.
type Ref struct{ Bucket, Key string }

// Scenario is a list of steps for one bucket and queue.
type Scenario struct {
	// Bucket is the trail's bucket, and the one to allow. Queue gets the messages.
	Bucket, Queue string
	Steps         []Step
	// Want is what comes of all steps together.
	Want Counts
}

// NewScenario adds steps up. Steps with AtLeast make the sum a lower bound.
func NewScenario(steps ...Step) *Scenario {
	s := &Scenario{Bucket: demoBucket, Queue: demoQueue, Steps: steps}
	s.Want = Counts{Quarantined: map[string]int{}, Ignored: map[string]int{}}
	for i := range steps {
		w := &steps[i].Want
		s.Want.Messages += w.Messages
		s.Want.Pulls += w.Pulls
		s.Want.Objects += w.Objects
		s.Want.Records += w.Records
		s.Want.Events += w.Events
		for kind, n := range w.Quarantined {
			s.Want.Quarantined[kind] += n
		}
		for kind, n := range w.Ignored {
			s.Want.Ignored[kind] += n
		}
	}
	s.Want.Unique = len(s.Events())
	s.Want.Duplicates = s.Want.Events - s.Want.Unique
	return s
}

// Events returns the events that must arrive, each with the number of times that
// it is read.
func (s *Scenario) Events() map[EventID]int {
	events := map[EventID]int{}
	for i := range s.Steps {
		for _, id := range s.Steps[i].ids {
			events[id]++
		}
	}
	return events
}

// Events returns the events that must come of the step alone, in the order of
// the objects, each as often as it is read.
func (s *Step) Events() []EventID { return slices.Clone(s.ids) }

const (
	demoBucket = "penstock-demo-trail"
	demoQueue  = "penstock-demo-notices"
)

// step fills in what follows from objects and messages: the expected counts of
// a step in which each message is a notice of objects that are all good.
// Exceptions are added by the caller.
func step(name string, objects []Object, messages ...Message) Step {
	st := Step{Name: name, Objects: objects, Messages: messages}
	st.Want = Counts{Quarantined: map[string]int{}, Ignored: map[string]int{}, Messages: len(messages)}
	byKey := map[string]*Object{}
	for i := range objects {
		byKey[objects[i].Key] = &objects[i]
	}
	pulled := map[string]bool{}
	for _, m := range messages {
		for _, ref := range m.About {
			o := byKey[ref.Key]
			if o == nil || m.Event != "" || ref.Bucket != o.Bucket {
				continue
			}
			st.Want.Pulls++
			st.Want.Records += o.Records
			st.ids = append(st.ids, o.EventIDs...)
			if o.Records > 0 && !pulled[ref.Key] {
				pulled[ref.Key] = true
				st.Want.Objects++
			}
		}
	}
	st.count()
	return st
}

// count sets the counts of events from the ids.
func (s *Step) count() {
	unique := map[EventID]bool{}
	for _, id := range s.ids {
		unique[id] = true
	}
	s.Want.Events, s.Want.Unique, s.Want.Duplicates = len(s.ids), len(unique), len(s.ids)-len(unique)
}

// notices makes a message for each object.
func notices(shape cloud.Shape, objects ...Object) []Message {
	list := make([]Message, 0, len(objects))
	for _, o := range objects {
		list = append(list, Message{Shape: shape, About: []Ref{{o.Bucket, o.Key}}})
	}
	return list
}

// together makes one message about several objects.
func together(objects ...Object) Message {
	m := Message{}
	for _, o := range objects {
		m.About = append(m.About, Ref{o.Bucket, o.Key})
	}
	return m
}

// Demo is the story that `penstock demo` tells: some 60,000 events in 36 objects
// of 1 to 20,000 records with 3 % duplicates, notices in every shape, some sent
// again, and one of each common mishap. It takes about a second to make.
func Demo(seed uint64) *Scenario { return DemoOf(seed, 1) }

// DemoOf is the same story with objects of another size: scale 0.1 makes 6,000
// events, which is enough for most tests.
func DemoOf(seed uint64, scale float64) *Scenario {
	sizes := []int{
		500, 2000, 1, 1000, 20000, 100, 3000, 500, 10, 2000, 1000, 500, 2000, 8000, 100, 10, 1000, 500,
		1, 2000, 100, 5000, 500, 10, 1000, 2000, 100, 3000, 10, 500, 2000, 1000, 100, 1000, 10, 100,
	}
	for i := range sizes {
		sizes[i] = max(1, int(float64(sizes[i])*scale))
	}
	trail := CloudTrail(Options{
		Seed: seed, Objects: len(sizes), RecordsPerObject: Sizes(sizes...), DuplicateShare: 0.03,
		Accounts: []string{cloud.AccountID, "111122223333"}, Regions: []string{"us-east-1", "eu-west-1"},
	})
	objects := slices.Collect(trail.All())
	odd := newOdd(seed)

	direct, wrapped, bridged, several := objects[:24], objects[24:28], objects[28:32], objects[32:]
	resent := append(notices(cloud.Direct, objects[1], objects[3]), notices(cloud.SNS, objects[25])...)
	again := step("re-sent notices", []Object{objects[1], objects[3], objects[25]}, resent...)
	again.Objects, again.Want.Objects = nil, 0 // they are there, and have been counted
	return NewScenario(
		odd.testEvent(),
		step("objects", direct, notices(cloud.Direct, direct...)...),
		step("objects announced through SNS", wrapped, notices(cloud.SNS, wrapped...)...),
		odd.brokenRecord(),
		step("objects announced through EventBridge", bridged, notices(cloud.EventBridge, bridged...)...),
		odd.missingKey(),
		step("objects announced together", several, together(several...)),
		odd.truncated(),
		again,
	)
}

var errInstall = fault.Define("demo.install_failed", fault.Stop,
	"give the endpoint no other contents, or other names for bucket and queue")

// Install stores the objects of all steps and sends their messages, in order,
// and returns the URL of the queue. Bucket and queue are made when they are
// missing. The puts themselves send no notice. Fails with demo.install_failed,
// also when ctx ends.
func Install(ctx context.Context, c *cloud.Cloud, s *Scenario) (queueURL string, err error) {
	for i := range s.Steps {
		if err := InstallStep(ctx, c, s, i); err != nil {
			return "", err
		}
	}
	return c.QueueURL(s.Queue), nil
}

// InstallStep does what Install does for one step.
func InstallStep(ctx context.Context, c *cloud.Cloud, s *Scenario, i int) error {
	st := &s.Steps[i]
	if err := ctx.Err(); err != nil {
		return errInstall.New(context.Cause(ctx), "install step %q", st.Name)
	}
	if _, err := c.CreateQueue(s.Queue, nil); err != nil {
		return errInstall.New(err, "install step %q", st.Name)
	}
	if err := c.CreateBucket(s.Bucket, cloud.BucketOptions{}); err != nil {
		return errInstall.New(err, "install step %q", st.Name)
	}
	for _, o := range st.Objects {
		if err := c.CreateBucket(o.Bucket, cloud.BucketOptions{}); err != nil {
			return errInstall.New(err, "install step %q", st.Name)
		}
		object := cloud.Object{Body: o.Body, ContentType: "application/json", ContentEncoding: "gzip", Denied: o.Denied, Quiet: true}
		if _, err := c.Put(o.Bucket, o.Key, object); err != nil {
			return errInstall.New(err, "install step %q", st.Name)
		}
	}
	for _, m := range st.Messages {
		if _, err := c.Send(s.Queue, m.body(c)); err != nil {
			return errInstall.New(err, "install step %q", st.Name)
		}
	}
	return nil
}

// body is what the queue gets. An object that is not there is told of with the
// values of one that was.
func (m *Message) body(c *cloud.Cloud) string {
	body := []byte(m.Raw)
	switch {
	case m.Raw != "":
	case m.Event == "s3:TestEvent":
		body = cloud.TestEvent(m.About[0].Bucket)
	default:
		events := make([]cloud.Event, 0, len(m.About))
		for _, ref := range m.About {
			e := cloud.Event{Name: m.Event, Bucket: ref.Bucket, Key: ref.Key, Region: c.Region(), Time: time.Now(), Size: 2331, ETag: "d41d8cd98f00b204e9800998ecf8427e", Sequencer: "0055AED6DCD90281E5"}
			if e.Name == "" {
				e.Name = "ObjectCreated:Put"
			}
			if put, ok := c.Stat(ref.Bucket, ref.Key); ok {
				e.Size, e.ETag, e.VersionID, e.Sequencer = put.Size, put.ETag, put.VersionID, put.Sequencer
			}
			events = append(events, e)
		}
		body = cloud.Message(m.Shape, events...)
	}
	if m.Wrapped {
		body = cloud.WrapSNS(body)
	}
	return string(body)
}
