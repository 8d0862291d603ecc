package flow

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/emersion/go-smtp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/tests/harness"
)

// eventID is that of a CloudTrail event, however its document is quoted.
var eventID = regexp.MustCompile(`eventID\\*":\\*"([0-9a-f-]{36})`)

// inbox counts the events that got to a destination.
type inbox struct {
	mu  sync.Mutex
	ids map[string]int
}

// take counts the events in what a receiver has taken.
func (b *inbox) take(data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range eventID.FindAllSubmatch(data, -1) {
		b.ids[string(m[1])]++
	}
}

func (b *inbox) distinct() int { b.mu.Lock(); defer b.mu.Unlock(); return len(b.ids) }

// faults compares what came with what should have: missing, and more than once.
func (b *inbox) faults(ids []string) (missing, twice int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	for id := range wanted {
		switch n := b.ids[id]; {
		case n == 0:
			missing++
		case n > 1:
			twice++
		}
	}
	return missing, twice
}

// receivers are one of each kind.
type receivers struct {
	t     *testing.T
	boxes map[string]*inbox
	// polls are asked again and again for what has come to stores.
	polls map[string]func() []byte
	yaml  strings.Builder
	dead  atomic.Bool
	mails atomic.Int64
}

func (r *receivers) box(name string) *inbox {
	b := r.boxes[name]
	if b == nil {
		b = &inbox{ids: map[string]int{}}
		r.boxes[name] = b
	}
	return b
}

// add writes a destination into the configuration.
func (r *receivers) add(name, kind string, lines ...string) {
	r.box(name)
	fmt.Fprintf(&r.yaml, "  - name: %s\n    type: %s\n", name, kind)
	for _, line := range lines {
		fmt.Fprintf(&r.yaml, "    %s\n", line)
	}
}

func body(t *testing.T, req *http.Request) []byte {
	in := io.Reader(req.Body)
	if req.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(req.Body)
		if err != nil {
			t.Error(err)
			return nil
		}
		in = z
	}
	data, err := io.ReadAll(in)
	if err != nil {
		return nil // the sender cut it
	}
	return data
}

var bulkID = regexp.MustCompile(`"_id":"([0-9a-f]+)"`)

// web starts the receivers that speak HTTP.
func (r *receivers) web() {
	mux := http.NewServeMux()
	answer := func(path, box, contentType, text string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, req *http.Request) {
			data := body(r.t, req)
			if data == nil {
				return
			}
			r.box(box).take(data)
			w.Header().Set("Content-Type", contentType)
			_, _ = io.WriteString(w, text)
		})
	}
	answer("/services/collector/event", "splunk", "application/json", `{"text":"Success","code":0}`)
	answer("/v1/logs", "otlp", "application/x-protobuf", "")
	answer("/form", "form", "text/plain", "")
	answer("/push", "push", "text/plain", "")
	mux.HandleFunc("/_bulk", func(w http.ResponseWriter, req *http.Request) {
		data := body(r.t, req)
		r.box("search").take(data)
		var items []string
		for _, m := range bulkID.FindAllSubmatch(data, -1) {
			items = append(items, fmt.Sprintf(`{"create":{"_id":%q,"status":201}}`, m[1]))
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"took":1,"errors":false,"items":[%s]}`, strings.Join(items, ","))
	})
	mux.HandleFunc("/dead", func(w http.ResponseWriter, req *http.Request) {
		data := body(r.t, req)
		if r.dead.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		r.box("dead").take(data)
	})
	s := httptest.NewServer(mux)
	r.t.Cleanup(s.Close)
	r.add("splunk", "splunk_hec", "url: "+s.URL, "token: abc", "ack: off")
	r.add("search", "opensearch", "urls: ["+s.URL+"]", "index: logs-{type}")
	r.add("otlp", "otlp", "endpoint: "+s.URL)
	r.add("form", "form_post", "url: "+s.URL+"/form")
	r.add("push", "webhook_push", "url: "+s.URL+"/push", "secrets: [whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw]", "one_per_request: false")
	r.add("dead", "http", "url: "+s.URL+"/dead", "backoff: {initial: 100ms, max: 1s}")
}

// streams starts receivers of octet-counted and of LF-framed lines.
func (r *receivers) streams() {
	listen := func(read func(*bufio.Reader) ([]byte, error), box string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			r.t.Fatal(err)
		}
		var wg sync.WaitGroup
		r.t.Cleanup(func() { _ = l.Close(); wg.Wait() })
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					defer c.Close()
					in := bufio.NewReaderSize(c, 64<<10)
					for {
						line, err := read(in)
						if err != nil {
							return
						}
						r.box(box).take(line)
					}
				})
			}
		})
		return l.Addr().String()
	}
	counted := func(in *bufio.Reader) ([]byte, error) {
		head, err := in.ReadString(' ')
		if err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(strings.TrimSpace(head))
		if err != nil {
			return nil, err
		}
		line := make([]byte, n)
		_, err = io.ReadFull(in, line)
		return line, err
	}
	r.add("syslog", "syslog", "address: "+listen(counted, "syslog"), "transport: tcp")
	lines := func(in *bufio.Reader) ([]byte, error) { return in.ReadBytes('\n') }
	r.add("devo", "devo", "address: "+listen(lines, "devo"), "relay: true", "transport: tcp")
}

// mailbox takes mails and adds up what their subjects say.
type mailbox struct{ r *receivers }

func (m mailbox) NewSession(*smtp.Conn) (smtp.Session, error) { return m, nil }
func (mailbox) Reset()                                        {}
func (mailbox) Logout() error                                 { return nil }
func (mailbox) Mail(string, *smtp.MailOptions) error          { return nil }
func (mailbox) Rcpt(string, *smtp.RcptOptions) error          { return nil }

var selected = regexp.MustCompile(`(?m)^Subject: penstock: (\d+) selected event`)

func (m mailbox) Data(in io.Reader) error {
	data, err := io.ReadAll(in)
	if n := selected.FindSubmatch(data); n != nil {
		count, _ := strconv.ParseInt(string(n[1]), 10, 64)
		m.r.mails.Add(count)
	}
	return err
}

func (r *receivers) mail() {
	s := smtp.NewServer(mailbox{r})
	s.ErrorLog = log.New(io.Discard, "", 0)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(l) }()
	r.t.Cleanup(func() { _ = s.Close(); <-ended })
	r.add("mail", "email", "address: "+l.Addr().String(), "encryption: none", "from: penstock@example.org", "to: [soc@example.org]",
		`select: {types: [">"]}`, "group_wait: 1s", "group_interval: 1s", "repeat_interval: 0s", "max_per_hour: 600")
}

// stores are destinations from which the test reads.
func (r *receivers) stores(w *harness.World) {
	file := filepath.Join(w.Dir, "out", "archive.ndjson")
	r.add("archive", "file", "path: "+file)
	r.polls["archive"] = func() []byte { data, _ := os.ReadFile(file); return data }

	if err := w.Cloud.CreateBucket("out", cloud.BucketOptions{}); err != nil {
		r.t.Fatal(err)
	}
	r.add("bucket", "s3", "bucket: out", "aws: {region: us-east-1, access_key: AKIAEXAMPLE, access_secret: example, endpoint_url: \""+w.Cloud.URL()+"\"}", "batch: {age: 2s}")
	r.polls["bucket"] = func() []byte { return r.objects(w.Cloud.URL(), "out") }

	queue, err := w.Cloud.CreateQueue("out", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.add("queue", "sqs", "queue_url: "+queue, "aws: {region: us-east-1, access_key: AKIAEXAMPLE, access_secret: example, endpoint_url: \""+w.Cloud.URL()+"\"}")
	var got bytes.Buffer
	r.polls["queue"] = func() []byte { r.receive(w.Cloud.URL(), queue, &got); return got.Bytes() }

	other := harness.StartNATS(r.t, r.t.TempDir())
	var nc *nats.Conn
	harness.Await(r.t, 10*time.Second, "the other NATS server answers", func() (ok bool) {
		var err error
		nc, err = nats.Connect(other.URL())
		return err == nil
	})
	r.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		r.t.Fatal(err)
	}
	stream, err := js.CreateStream(r.t.Context(), jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out.>"}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.add("nats", "nats", "url: "+other.URL(), "subject: out.{type}")
	r.polls["nats"] = func() []byte { return r.messages(stream) }
}

func (r *receivers) objects(url, bucket string) []byte {
	client := s3.New(s3.Options{
		Region: "us-east-1", BaseEndpoint: &url, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider("AKIAEXAMPLE", "example", ""),
	})
	list, err := client.ListObjectsV2(r.t.Context(), &s3.ListObjectsV2Input{Bucket: &bucket})
	if err != nil {
		r.t.Fatal(err)
	}
	var all bytes.Buffer
	for _, o := range list.Contents {
		got, err := client.GetObject(r.t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: o.Key})
		if err != nil {
			r.t.Fatal(err)
		}
		z, err := gzip.NewReader(got.Body)
		if err != nil {
			r.t.Fatal(err)
		}
		if _, err := io.Copy(&all, z); err != nil {
			r.t.Errorf("object %s: %v", *o.Key, err)
		}
		_ = got.Body.Close()
	}
	return all.Bytes()
}

// receive takes what is in a queue, and leaves nothing behind. An answer that gets lost on the
// way comes again when its messages are visible again.
func (r *receivers) receive(url, queue string, into *bytes.Buffer) {
	client := sqs.New(sqs.Options{
		Region: "us-east-1", BaseEndpoint: &url, Credentials: credentials.NewStaticCredentialsProvider("AKIAEXAMPLE", "example", ""),
	})
	for {
		got, err := client.ReceiveMessage(r.t.Context(), &sqs.ReceiveMessageInput{QueueUrl: &queue, MaxNumberOfMessages: 10, VisibilityTimeout: 20})
		if err != nil {
			r.t.Fatal(err)
		}
		if len(got.Messages) == 0 {
			return
		}
		for _, m := range got.Messages {
			into.WriteString(*m.Body + "\n")
			if _, err := client.DeleteMessage(r.t.Context(), &sqs.DeleteMessageInput{QueueUrl: &queue, ReceiptHandle: m.ReceiptHandle}); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

func (r *receivers) messages(s jetstream.Stream) []byte {
	c, err := s.CreateConsumer(r.t.Context(), jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy, InactiveThreshold: time.Minute})
	if err != nil {
		r.t.Fatal(err)
	}
	defer s.DeleteConsumer(context.WithoutCancel(r.t.Context()), c.CachedInfo().Name) // it goes by itself, too
	var all bytes.Buffer
	left := c.CachedInfo().NumPending
	for left > 0 {
		batch, err := c.Fetch(int(min(left, 1000)), jetstream.FetchMaxWait(5*time.Second))
		if err != nil {
			r.t.Fatal(err)
		}
		for m := range batch.Messages() {
			all.Write(m.Data())
			all.WriteByte('\n')
			left--
		}
		if err := batch.Error(); err != nil {
			r.t.Logf("read what NATS has: %v", err)
			break // the next look reads all again
		}
	}
	return all.Bytes()
}

// look asks the stores what they hold now.
func (r *receivers) look() {
	for name, poll := range r.polls {
		data, b := poll(), r.box(name)
		b.mu.Lock()
		b.ids = map[string]int{}
		b.mu.Unlock()
		b.take(data)
	}
}

// await waits until all destinations but those left out have n different events.
func (r *receivers) await(n int, but ...string) {
	r.t.Helper()
	var lacks string
	defer func() {
		if lacks != "" {
			r.t.Logf("of %d events%s", n, lacks)
		}
	}()
	harness.Await(r.t, 2*time.Minute, "every destination has all", func() bool {
		r.look()
		lacks = ""
		for name, b := range r.boxes {
			if got := b.distinct(); got < n && name != "mail" && !slices.Contains(but, name) {
				lacks += fmt.Sprintf(" %s has %d", name, got)
			}
		}
		if mails := r.mails.Load(); mails < int64(n) {
			lacks += fmt.Sprintf(" mails tell of %d", mails)
		}
		return lacks == ""
	})
}

// Every kind of destination gets every event, once while nothing dies, and none is
// held up by one that takes nothing; killed in the middle, all get what they had not
// confirmed, and the one that was dead gets everything when it is back.
// covers: LIM-13, OPC-3, OPC-28, CEN-3
func TestEveryDestinationGetsEveryEvent(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	r := &receivers{t: t, boxes: map[string]*inbox{}, polls: map[string]func() []byte{}}
	r.dead.Store(true)
	r.web()
	r.streams()
	r.mail()
	r.stores(w)
	w.Destination = r.yaml.String()
	w.Bus = "  ack_wait: 3s\n" // what a dead process had in hand comes back soon

	first := trail(11, 6, 300)
	p := w.RunAll()
	ids := put(t, w, first)
	r.await(first.Unique(), "dead")
	for name, b := range r.boxes {
		if name == "dead" || name == "mail" {
			continue
		}
		if missing, twice := b.faults(ids); missing+twice > 0 {
			t.Errorf("%s: of %d events %d are missing and %d came more than once", name, first.Unique(), missing, twice)
		}
	}
	if n := r.mails.Load(); n != int64(first.Unique()) {
		t.Errorf("mails tell of %d events, want %d", n, first.Unique())
	}
	if n := r.box("dead").distinct(); n != 0 {
		t.Fatalf("the dead one took %d events", n)
	}

	second := trail(12, 6, 300)
	ids = append(ids, put(t, w, second)...)
	some := first.Unique() + second.Unique()/4
	harness.Await(t, time.Minute, "it is in the middle", func() bool { return r.box("splunk").distinct() > some })
	p.Kill()
	w.RunAll()
	all := first.Unique() + second.Unique()
	r.await(all, "dead")
	r.dead.Store(false)
	r.await(all)
	for name, b := range r.boxes {
		if name == "mail" {
			continue
		}
		missing, twice := b.faults(ids)
		if missing > 0 {
			t.Errorf("%s: %d events are missing", name, missing)
		}
		t.Logf("%s: of %d events %d came more than once, after a kill", name, all, twice)
	}
	settled(t, w.StoreURL())
}
