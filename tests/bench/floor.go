package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	_ "net/http/pprof" //nolint:gosec // the bench reads there what the floor allocates
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/klauspost/compress/gzip"
)

// floorRole makes this program the floor: the set, and what is to be read and written.
const floorRole = "PENSTOCK_BENCH_FLOOR"

// floor does the least that delivering a set takes, and promises nothing: no record is
// stored, checked, told apart or counted. It is the measure for the same machine at the
// same time. Of rows of text it posts the very lines that penstock does, with id, time and
// document; records that are JSON it posts as they came, without what penstock puts around them.
type floor struct {
	set     Set
	bare    bool // see [Contender]
	bodies  bool // the messages are the events
	queue   string
	sink    string
	queues  *sqs.Client
	objects *s3.Client
	web     *http.Client
}

// floorEnv is the floor's task.
func floorEnv(set Set, bare, bodies bool, queue, endpoint, sink, health string) string {
	return floorRole + "=" + strings.Join([]string{set.Name, strconv.FormatBool(bare), strconv.FormatBool(bodies), queue, endpoint, sink, health}, "|")
}

// runFloor works until it is told to stop: four loops for objects, as many as penstock
// has receivers for messages.
func runFloor(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	task := strings.Split(os.Getenv(floorRole), "|")
	if len(task) != 7 {
		return fmt.Errorf("%s has %d parts, want 7", floorRole, len(task))
	}
	set, err := setNamed(task[0])
	if err != nil {
		return err
	}
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return err
	}
	cfg.BaseEndpoint = aws.String(task[4])
	loops := 4
	if task[2] == "true" {
		loops = 16
	}
	// Every loop keeps its connections, which no default allows.
	cfg.HTTPClient = awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.MaxIdleConnsPerHost = 4 * loops })
	f := &floor{
		web: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: loops}},
		set: set, bare: task[1] == "true", bodies: task[2] == "true", queue: task[3], sink: task[5], queues: sqs.NewFromConfig(cfg),
		objects: s3.NewFromConfig(cfg, func(o *s3.Options) {
			o.UsePathStyle, o.DisableLogOutputChecksumValidationSkipped = true, true
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		}),
	}
	http.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	server := &http.Server{Addr: task[6]} //nolint:gosec // for the bench alone
	go func() { _ = server.ListenAndServe() }()
	var wg sync.WaitGroup
	errs := make(chan error, loops)
	for range loops {
		wg.Go(func() {
			loop := floorLoop{floor: f, window: make([]byte, 256<<10)}
			if set.Layout != nil && !f.bare {
				loop.lines = newLineMaker(set.Layout, strings.Split(f.queue, "/")[3], cfg.Region)
			}
			for ctx.Err() == nil {
				if err := loop.batch(ctx); err != nil && ctx.Err() == nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	_ = server.Close()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// floorLoop is one of its loops, with what it uses again and again.
type floorLoop struct {
	*floor
	zip    gzip.Reader
	window []byte     // for records, none of which is longer
	lines  *lineMaker // nil where records are posted as they came
	out    []byte
}

// batch receives up to ten messages, posts what they bring, and deletes them.
func (f *floorLoop) batch(ctx context.Context) error {
	got, err := f.queues.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &f.queue, MaxNumberOfMessages: 10, WaitTimeSeconds: 5})
	if err != nil {
		return err
	}
	var done []types.DeleteMessageBatchRequestEntry
	for i, m := range got.Messages {
		if f.bodies {
			err = f.record([]byte(*m.Body))
		} else {
			err = f.notice(ctx, *m.Body)
		}
		if err != nil {
			return err
		}
		done = append(done, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: m.ReceiptHandle})
	}
	if len(done) == 0 {
		return nil
	}
	if err := f.post(); err != nil {
		return err
	}
	_, err = f.queues.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &f.queue, Entries: done})
	return err
}

// notice handles the objects that a message announces.
func (f *floorLoop) notice(ctx context.Context, text string) error {
	var notice struct {
		Records []struct {
			S3 struct {
				Bucket struct{ Name string }
				Object struct{ Key string }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &notice); err != nil {
		return err
	}
	for _, r := range notice.Records {
		if err := f.object(ctx, r.S3.Bucket.Name, r.S3.Object.Key); err != nil {
			return err
		}
	}
	return nil
}

func (f *floorLoop) object(ctx context.Context, bucket, key string) error {
	o, err := f.objects.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return err
	}
	defer func() { _ = o.Body.Close() }()
	if err := f.zip.Reset(o.Body); err != nil {
		return err
	}
	if f.lines != nil {
		f.lines.begin(bucket, key, aws.ToString(o.ETag))
	}
	lines := bufio.NewScanner(&f.zip)
	lines.Buffer(f.window, cap(f.window))
	lines.Split(f.set.Split)
	for i := 0; lines.Scan(); i++ {
		if i < f.set.Header {
			continue
		}
		if err := f.record(lines.Bytes()); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return f.post() // an object's events do not wait for the next one's
}

// postBytes is about a thousand events of CloudTrail.
const postBytes = 1_400_000

// record puts a record out.
func (f *floorLoop) record(record []byte) error {
	if !f.set.ID(record) {
		return errNoID
	}
	if f.lines != nil {
		f.out = f.lines.line(f.out, record)
	} else {
		f.out = append(append(f.out, record...), '\n')
	}
	if len(f.out) >= postBytes {
		return f.post()
	}
	return nil
}

func (f *floorLoop) post() error {
	if len(f.out) == 0 {
		return nil
	}
	response, err := f.web.Post(f.sink, "application/x-ndjson", bytes.NewReader(f.out)) //nolint:noctx // loopback
	if err != nil {
		return err
	}
	f.out = f.out[:0]
	return response.Body.Close()
}
