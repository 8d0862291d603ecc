package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/klauspost/compress/gzip"
)

// floorRole makes this program the floor: what is to be read and written.
const (
	floorRole   = "PENSTOCK_BENCH_FLOOR"
	floorBinary = "floor"
)

// floorLoop does the least that delivering an object takes, in four goroutines,
// and promises nothing: no record is stored, checked, told apart or counted. It is
// the measure for the same machine at the same time.
func floorLoop(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	f := strings.Split(os.Getenv(floorRole), "|")
	queue, endpoint, sink, health := f[0], f[1], f[2], f[3]
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return err
	}
	cfg.BaseEndpoint = aws.String(endpoint)
	queues := sqs.NewFromConfig(cfg)
	objects := s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.UsePathStyle, o.DisableLogOutputChecksumValidationSkipped = true, true
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
	server := &http.Server{Addr: health, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})} //nolint:gosec // for the bench alone
	go func() { _ = server.ListenAndServe() }()
	var wg sync.WaitGroup
	errs := make(chan error, 4)
	for range cap(errs) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := floorBatch(ctx, queues, objects, queue, sink); err != nil && ctx.Err() == nil {
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

func floorBatch(ctx context.Context, queues *sqs.Client, objects *s3.Client, queue, sink string) error {
	got, err := queues.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &queue, MaxNumberOfMessages: 10, WaitTimeSeconds: 5})
	if err != nil {
		return err
	}
	var done []types.DeleteMessageBatchRequestEntry
	for i, m := range got.Messages {
		var notice struct {
			Records []struct {
				S3 struct {
					Bucket struct{ Name string }
					Object struct{ Key string }
				}
			}
		}
		if err := json.Unmarshal([]byte(*m.Body), &notice); err != nil {
			return err
		}
		for _, r := range notice.Records {
			if err := floorObject(ctx, objects, r.S3.Bucket.Name, r.S3.Object.Key, sink); err != nil {
				return err
			}
		}
		done = append(done, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: m.ReceiptHandle})
	}
	if len(done) == 0 {
		return nil
	}
	_, err = queues.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &queue, Entries: done})
	return err
}

// floorObject splits at the places where generated records meet, which no real
// feed would allow.
func floorObject(ctx context.Context, objects *s3.Client, bucket, key, sink string) error {
	o, err := objects.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return err
	}
	defer func() { _ = o.Body.Close() }()
	z, err := gzip.NewReader(o.Body)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(z)
	if err != nil {
		return err
	}
	body = bytes.TrimSuffix(bytes.TrimPrefix(body, []byte(`{"Records":[`)), []byte("]}"))
	var out bytes.Buffer
	lines := 0
	flush := func() error {
		response, err := http.Post(sink, "application/x-ndjson", bytes.NewReader(out.Bytes())) //nolint:gosec,noctx // loopback
		if err != nil {
			return err
		}
		out.Reset()
		lines = 0
		return response.Body.Close()
	}
	for len(body) > 0 {
		end := bytes.Index(body, []byte(`},{"eventVersion"`)) + 1
		if end == 0 {
			end = len(body)
		}
		record := body[:end]
		if !bytes.Contains(record, []byte(`"eventID":"`)) {
			return errors.New("a record has no id")
		}
		out.Write(record)
		out.WriteByte('\n')
		if lines++; lines == 1000 {
			if err := flush(); err != nil {
				return err
			}
		}
		body = bytes.TrimPrefix(body[end:], []byte(","))
	}
	if lines > 0 {
		return flush()
	}
	return nil
}
