package security

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/tests/harness"
)

// Objects that become far more than they are, and messages that claim to: the process
// holds no more than its configuration allows, and reads on.
//
// covers: design section 8
func TestBombsAreBounded(t *testing.T) {
	takesLong(t)
	w := harness.NewWorld(t, nil)
	w.Extra = "fetch: {max_bytes_in_flight: 32 MiB, max_object: 512 MiB, max_record: 4 MiB, max_line: 1 MiB, max_objects: 8}\n"
	p := w.RunAll()
	before := peak(t, p.PID())

	var members bytes.Buffer
	z := gzip.NewWriter(&members)
	for range 100_000 {
		z.Reset(&members)
		_ = z.Close()
	}
	var frames bytes.Buffer
	tiny, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 100_000 {
		frames.Write(tiny.EncodeAll([]byte("\n"), nil))
	}
	zeros := func(n int64, to io.WriteCloser) {
		_, _ = io.CopyN(to, zeroReader{}, n)
		_ = to.Close()
	}
	var gz, zst bytes.Buffer
	zeros(512<<20, gzip.NewWriter(&gz))
	wide, err := zstd.NewWriter(&zst, zstd.WithWindowSize(zstd.MaxWindowSize))
	if err != nil {
		t.Fatal(err)
	}
	zeros(512<<20, wide)
	bombs := map[string][]byte{
		"gzip.json.gz":        gz.Bytes(),
		"nested.json.gz":      gzipped(gzipped(gz.Bytes())),
		"members.json.gz":     members.Bytes(),
		"zstd.json.zst":       zst.Bytes(),
		"frames.json.zst":     frames.Bytes(),
		"deep.json":           []byte(`{"Records":` + strings.Repeat("[", 2<<20)),
		"deep2.json":          []byte(`{"Records":[{"a":` + strings.Repeat(`{"a":`, 400_000) + "1" + strings.Repeat("}", 400_000) + "}]}"),
		"number.json":         []byte(`{"Records":[{"eventID":"1","n":` + strings.Repeat("9", 8<<20) + "}]}"),
		"key.json":            []byte(`{"Records":[{"` + strings.Repeat("k", 8<<20) + `":1}]}`),
		"line.log":            bytes.Repeat([]byte("x"), 32<<20),
		"quote.csv":           append([]byte("a,b\n\""), bytes.Repeat([]byte("x,"), 8<<20)...),
		"columns.csv":         append(bytes.Repeat([]byte("c,"), 1<<20), "\n1,2\n"...),
		"lines.json.gz":       gzipped(bytes.Repeat([]byte("{}\n"), 4<<20)),
		"table.parquet":       []byte("PAR1\x15\x00" + strings.Repeat("\xff", 64) + "\xff\xff\xff\x7fPAR1"),
		"windows.parquet":     append([]byte("PAR1"), append(bytes.Repeat([]byte{0x19, 0xfc, 0xff, 0xff, 0xff, 0x7f}, 1000), "\x70\x17\x00\x00PAR1"...)...),
		"window.json.zst":     {0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x00, 0x00}, // claims a window of 3.75 TiB
		"content.json.zst":    {0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0x00, 0x00},
		"extra field.json.gz": append([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 3, 0xff, 0xff}, make([]byte, 70_000)...),
		"name.json.gz":        append([]byte{0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3}, bytes.Repeat([]byte("n"), 8<<20)...),
	}
	if path, err := exec.LookPath("bzip2"); err == nil {
		cmd := exec.Command(path, "-c")
		cmd.Stdin = io.LimitReader(zeroReader{}, 512<<20)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		bombs["bzip2.json.bz2"] = out
	}
	for name, body := range bombs {
		if _, err := w.Cloud.Put(harness.Bucket, "bombs/"+name, cloud.Object{Body: body}); err != nil {
			t.Fatal(err)
		}
	}

	// What stands on the bus instead of frames: whoever has a stage's credentials can
	// write it.
	nc, err := nats.Connect(w.StoreURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	lie := binary.AppendUvarint(nil, 1<<40) // how long an S2 block says it becomes
	for _, subject := range []string{"penstock.notice", "penstock.record", "penstock.parsed.0", "penstock.unique.0", "penstock.seen.0", "penstock.event.x.y", "penstock.quarantine.x.y", "penstock.ledger.fetch"} {
		for _, data := range [][]byte{lie, append([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}, lie...), []byte("{}"), nil, bytes.Repeat([]byte{0xff}, 1<<20), append([]byte{0x62, 0x06}, lie...)} {
			_ = nc.Publish(subject, data)
			_ = nc.Publish(subject+".trail", data)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}

	good := []byte(`{"Records":[{"eventID":"good-1","eventTime":"2026-11-20T08:00:00Z","eventName":"A","eventSource":"iam.amazonaws.com","awsRegion":"eu-west-1","recipientAccountId":"123456789012"}]}`)
	if _, err := w.Cloud.Put(harness.Bucket, "AWSLogs/good.json", cloud.Object{Body: good}); err != nil {
		t.Fatal(err)
	}
	seen := func(what, text string, n int) {
		harness.Await(t, 3*time.Minute, what, func() bool {
			if !p.Running() {
				t.Fatal("the process ended")
			}
			out, _, _ := harness.Run(t, nil, "ledger", "--json", "--pulls", "--limit", "1000", "--object", text, "--store", w.Dir+"/store")
			return strings.Count(out, "s3://") >= n || strings.Count(out, `"key"`) >= n
		})
	}
	seen("the good object is delivered", "good", 1)
	seen("every bomb is in the books", "bombs/", len(bombs))
	w.AwaitDelivered(3*time.Minute, 1)

	// Bytes in flight, with a buffer of the largest record for each object that is read
	// and what goes on from there, and the bus that stores it, on top of the start.
	bound := before + 4*32<<20 + 8*4*4<<20 + 64<<20
	most := peak(t, p.PID())
	t.Logf("the process took %d MiB at most, %d before, bound %d", most>>20, before>>20, bound>>20)
	if most > bound {
		t.Errorf("the process took %d MiB; the bound is %d", most>>20, bound>>20)
	}
	if strings.Contains(p.Log(), "panic") {
		t.Error("something panicked: " + fmt.Sprint(p.Log()))
	}
}
