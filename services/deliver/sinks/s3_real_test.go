//go:build unix

package sinks

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/probe"
)

// gateway is a real S3 server that keeps objects as files.
type gateway struct {
	t       *testing.T
	path    string // of its program
	address string
	folder  string
	client  *s3.Client
	cmd     *exec.Cmd
}

func startGateway(t *testing.T) *gateway {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	g := &gateway{t: t, path: receiver(t, "versitygw"), address: free.Addr().String(), folder: t.TempDir()}
	must(t, free.Close())
	g.client, err = awsclient.S3(t.Context(), g.access())
	must(t, err)
	g.start()
	t.Cleanup(g.kill)
	_, err = g.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("out")})
	must(t, err)
	return g
}

func (g *gateway) access() awsclient.Config {
	return awsclient.Config{Region: "us-east-1", EndpointURL: "http://" + g.address, AccessKey: "test", SecretKey: config.NewSecret("testtest")}
}

// start runs it and returns when it answers.
func (g *gateway) start() {
	g.t.Helper()
	g.cmd = exec.CommandContext(context.Background(), g.path, "--port", g.address, "--access", "test", "--secret", "testtest", "posix", filepath.Join(g.folder))
	must(g.t, g.cmd.Start())
	ctx, cancel := context.WithTimeout(g.t.Context(), 30*time.Second)
	defer cancel()
	for {
		if _, err := g.client.ListBuckets(ctx, &s3.ListBucketsInput{}); err == nil {
			return
		}
		if ctx.Err() != nil {
			g.t.Fatal("the gateway does not answer")
		}
	}
}

// kill ends it as a power cut does.
func (g *gateway) kill() {
	_ = g.cmd.Process.Signal(syscall.SIGKILL)
	_ = g.cmd.Wait()
}

// keys are those of all objects.
func (g *gateway) keys() []string {
	g.t.Helper()
	out, err := g.client.ListObjectsV2(g.t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("out")})
	must(g.t, err)
	var keys []string
	for _, o := range out.Contents {
		keys = append(keys, aws.ToString(o.Key))
	}
	return keys
}

// lines are those of all objects. An object that is not whole fails the test.
func (g *gateway) lines() []string {
	g.t.Helper()
	var all []string
	for _, key := range g.keys() {
		out, err := g.client.GetObject(g.t.Context(), &s3.GetObjectInput{Bucket: aws.String("out"), Key: &key})
		must(g.t, err)
		body, err := io.ReadAll(out.Body)
		must(g.t, err)
		_ = out.Body.Close()
		all = append(all, linesIn(g.t, key, body)...)
	}
	return all
}

func (g *gateway) sink(change func(*S3Config)) *s3Bench {
	g.t.Helper()
	cfg := defaultS3()
	cfg.Bucket, cfg.Format, cfg.AWS, cfg.Batch.Age, cfg.Timeout = "out", S3Envelope, g.access(), time.Hour, 5*time.Second
	if change != nil {
		change(&cfg)
	}
	s := openedS3(g.t, cfg)
	g.t.Cleanup(func() { must(g.t, s.Close()) })
	return &s3Bench{s3Sink: s}
}

// covers: F-31
func TestS3Real(t *testing.T) {
	g := startGateway(t)
	for _, packing := range []S3Compression{S3Gzip, S3Plain} {
		b := g.sink(func(c *S3Config) { c.Prefix, c.Compression = "real/"+string(packing), packing })
		small := b.give(t.Context(), b.next(100, 100))
		b.Hurry()
		small.want(t, Done)
		large := b.give(t.Context(), b.next(300, 100_000))
		b.Hurry()
		large.want(t, Done)
		if packing == S3Gzip {
			for _, f := range b.cfg.Probe(t.Context()) {
				if f.Level != probe.OK {
					t.Errorf("%+v", f)
				}
			}
			out, err := g.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String("out"), Key: aws.String(smallest(t, g))})
			must(t, err)
			if out.Metadata["event-count"] != "100" || len(out.Metadata["sha256"]) != 64 || out.Metadata["first-event-time"] != "2026-01-05T07:44:54.12Z" {
				t.Errorf("%v", out.Metadata)
			}
			expect(t, &world{received: g.lines}, 400)
			for _, key := range g.keys() {
				_, err := g.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String("out"), Key: &key})
				must(t, err)
			}
			continue
		}
		expect(t, &world{received: g.lines}, 400)
	}
}

func smallest(t *testing.T, g *gateway) string {
	t.Helper()
	out, err := g.client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("out")})
	must(t, err)
	key, size := "", int64(1<<62)
	for _, o := range out.Contents {
		if n := aws.ToInt64(o.Size); n < size {
			key, size = aws.ToString(o.Key), n
		}
	}
	return key
}

// The server dies in the middle of an upload and comes back: each event is stored once,
// and no object is half.
// covers: F-31, OPC-24
func TestS3RealServerDies(t *testing.T) {
	g := startGateway(t)
	b := g.sink(func(c *S3Config) { c.Compression = S3Plain })
	var all []s3Held
	for range 6 { // 18 MB: two parts go out
		all = append(all, b.give(t.Context(), b.next(30, 100_000)))
	}
	g.kill()
	last := b.next(30, 100_000)
	for range 3 { // what fills the next part, and then nothing more is taken
		h := b.give(t.Context(), last)
		select {
		case res := <-h.result:
			if res.Verdict != Retry {
				t.Fatalf("%v: %v", res.Verdict, res.Err)
			}
		default:
			all = append(all, h)
			last = b.next(30, 100_000)
		}
	}
	g.start()
	settle := b.give(t.Context(), last)
	b.Hurry()
	for _, h := range append(all, settle) {
		h.want(t, Done)
	}
	expect(t, &world{received: g.lines}, b.sent)
}

// penstock dies in the middle of an upload: no object is there, and what is sent again
// after the restart is there once. The parts that are left are no object.
// covers: F-31
func TestS3RealWeDie(t *testing.T) {
	if at := os.Getenv("PENSTOCK_TEST_S3"); at != "" {
		dieInTheMiddle(t, at)
		return
	}
	g := startGateway(t)
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestS3RealWeDie$")
	child.Env = append(os.Environ(), "PENSTOCK_TEST_S3="+g.address)
	out, err := child.CombinedOutput()
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("%v: %s", err, out)
	}
	uploads, err := g.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: aws.String("out")})
	must(t, err)
	if len(g.keys()) != 0 || len(uploads.Uploads) != 1 {
		t.Fatalf("%q, %d uploads", g.keys(), len(uploads.Uploads))
	}
	b := g.sink(func(c *S3Config) { c.Compression = S3Plain })
	again := b.give(t.Context(), b.next(200, 100_000))
	b.Hurry()
	again.want(t, Done)
	expect(t, &world{received: g.lines}, 200)
}

// dieInTheMiddle uploads a part and is killed.
func dieInTheMiddle(t *testing.T, address string) {
	g := &gateway{t: t, address: address}
	b := g.sink(func(c *S3Config) { c.Compression = S3Plain })
	b.give(t.Context(), b.next(200, 100_000))
	for {
		b.mu.Lock()
		tries, changed := 0, b.changed
		for o := range b.objects {
			tries += o.tries
		}
		b.mu.Unlock()
		if tries >= 1 {
			break
		}
		<-changed
	}
	fmt.Println("dies now")
	must(t, syscall.Kill(os.Getpid(), syscall.SIGKILL))
	select {}
}
