package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/spf13/cobra"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/fetch"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/services/internal/tag"
	"github.com/penstock/penstock/services/parse"
	"github.com/penstock/penstock/services/parse/formats"
	"github.com/penstock/penstock/topology"
)

// newParse shows what the stages fetch and parse make of a file, without a bus.
func newParse() *cobra.Command {
	var t trial
	var format, configPath string
	cmd := &cobra.Command{
		Use: "parse FILE", Args: exactly(1), Short: "Show what a file becomes: its events, and what is refused",
		Long: `Reads a file as if it were an object, through the stages fetch and parse, and
prints each event with its type, time, account, region and id. What is refused
is printed with its place and reason. Nothing is stored or sent.

FILE may be compressed; - reads standard input. Formats often go by the key of an
object as well: give it with --key. With --source the format, its options and the
tables are those of a source in the configuration; without, events have the types
that they have with auto_event_type: true.

Exit code 1: something was refused.`,
		Example: `  penstock parse --format vpcflow flow.log.gz
  penstock parse --key dnslogs/2026-01-05/2026-01-05-10-00-abcd.csv.gz umbrella.csv.gz --json
  penstock parse --config penstock.yaml --source trail records.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			t.setting = formats.Setting{Type: format}
			if t.source != "" {
				file, err := loadFile(configPath)
				if err != nil {
					return err
				}
				i := slices.IndexFunc(file.Sources, func(s Source) bool { return s.Name == t.source })
				if i < 0 {
					return usageError{fmt.Errorf("--source: there is no source %q in %s", t.source, configPath)}
				}
				t.tags = map[string]*tag.Config{t.source: &file.Sources[i].Tag}
				if t.setting = file.Sources[i].Format; format != formats.Auto {
					t.setting = formats.Setting{Type: format}
				}
			}
			if t.setting.Type != formats.Auto && !formats.Known(t.setting.Type) {
				return usageError{fmt.Errorf("--format: there is no format %q; use auto or one of %s", t.setting.Type, strings.Join(formats.Names(), ", "))}
			}
			t.out, t.log = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return t.run(cmd.Context(), args[0], cmd.InOrStdin())
		},
	}
	cmd.Flags().StringVar(&format, "format", formats.Auto, "format of the records; see penstock formats")
	cmd.Flags().StringVar(&t.key, "key", "", "key of the object; default: the name of the file")
	cmd.Flags().StringVarP(&configPath, "config", "c", "penstock.yaml", "configuration file, for --source")
	cmd.Flags().StringVar(&t.source, "source", "", "take format and options of this source")
	cmd.Flags().BoolVar(&t.asJSON, "json", false, "print a line of JSON for each event and each refusal")
	cmd.Flags().IntVar(&t.limit, "limit", 0, "print the first events only; 0 prints all")
	return cmd
}

// trial takes one file through fetch and parse.
type trial struct {
	setting     formats.Setting
	tags        map[string]*tag.Config // nil without --source
	key, source string
	asJSON      bool
	limit       int
	out, log    io.Writer

	fetch   *fetch.Fetch
	parse   *parse.Parse
	mu      sync.Mutex // groups and refusals of one frame come at once
	rows    []row      // what the frame of records at hand becomes
	bad     []refusal
	parsing bool // refusals come in any order
	events  int
	refused map[string]int
	format  string
	skipped string
	types   map[string]int
}

const trialBucket = "file"

func (t *trial) run(ctx context.Context, path string, stdin io.Reader) error {
	if path == "-" {
		spooled, err := spool(stdin)
		if err != nil {
			return err
		}
		defer remove(spooled)
		path = spooled
		if t.key == "" {
			t.key = "stdin"
		}
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return usageError{fmt.Errorf("%w; name a file that is there, or - for standard input", err)}
	case info.IsDir():
		return usageError{fmt.Errorf("%s is a directory; name a file", path)}
	}
	if t.key == "" {
		t.key = filepath.Base(path)
	}
	if t.source == "" {
		t.source = "file"
	}
	t.refused, t.types = map[string]int{}, map[string]int{}
	if t.fetch, err = fetch.New(fetch.Defaults(), fetch.Deps{Choose: t.choose, Sources: map[string]fetch.Source{t.source: {
		Format: t.setting.Type, Allows: func(string) bool { return true },
		S3: func(context.Context) (fetch.S3, error) { return fileObject{path}, nil },
	}}}); err != nil {
		return err
	}
	// Every frame becomes events by itself, so that they come out in order.
	c := parse.Defaults()
	c.Linger, c.ThinLinger, c.Idle = 0, 0, 0
	if t.parse, err = parse.New(c, parse.Deps{
		NewOutbox: func() topology.Outbox { return grouped{t} }, Lanes: 1, Window: 1,
		Settings: map[string]formats.Setting{t.source: t.setting}, Tags: t.tags,
	}); err != nil {
		return err
	}
	defer t.parse.Close()
	now := time.Now()
	notice := &messages.Notice{Version: 1, Size: info.Size(), Origin: &messages.Origin{
		Pull: messages.NewPull("file", path), Source: t.source, Bucket: trialBucket, Key: t.key,
		Created: info.ModTime().UnixNano(), Received: now.UnixNano(),
	}}
	// The attempt is one after which nothing more is hoped for.
	err = t.fetch.Handle(ctx, topology.In[*messages.Notice]{
		Value: notice, Data: messages.EncodeNotice(notice), Attempt: 1 << 20, Stored: now,
	}, t)
	if err != nil {
		if err := t.printRefusal("fetch", err.Error(), "", nil); err != nil {
			return err
		}
		t.refused["-"]++
	}
	return t.sum()
}

func (t *trial) choose(configured, key string, head []byte) (string, framing.Framing, string) {
	format, cut, skip := t.setting.Choose(configured, key, head)
	t.format, t.skipped = format, skip
	return format, cut, skip
}

// Publish implements topology.Outbox: fetch hands over a frame of records.
func (t *trial) Publish(ctx context.Context, m topology.Message) error {
	view, err := messages.DecodeFrame(m.Data)
	if err != nil {
		return err
	}
	t.rows, t.bad, t.parsing = t.rows[:0], t.bad[:0], true
	err = t.parse.Handle(ctx, topology.In[messages.View]{Value: view, Data: m.Data, Attempt: 1, Stored: time.Now()}, t)
	t.parsing = false
	if err != nil {
		return err
	}
	return t.print()
}

// Quarantine implements topology.Outbox.
func (t *trial) Quarantine(_ context.Context, q *messages.Quarantine) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused[q.GetCode()]++
	r := refusal{q.GetRecord(), q.GetCode(), q.GetReason(), fmt.Sprintf("record %d", q.GetRecord()), q.GetPayload()}
	if q.GetOffset() >= 0 {
		r.where += fmt.Sprintf(", offset %d", q.GetOffset())
	}
	if !t.parsing {
		return t.printRefusal(r.code, r.reason, r.where, r.payload)
	}
	r.payload = slices.Clone(r.payload)
	t.bad = append(t.bad, r)
	return nil
}

// refusal is one record that was refused.
type refusal struct {
	record              uint64
	code, reason, where string
	payload             []byte
}

// Fact implements topology.Outbox.
func (t *trial) Fact(*messages.Fact) {}

// Flush implements topology.Outbox.
func (t *trial) Flush(context.Context) error { return nil }

// row is one event as it is printed.
type row struct {
	Record  uint64 `json:"record"`
	ID      string `json:"id"`
	Type    string `json:"type"`
	Time    string `json:"time"`
	Account string `json:"account,omitempty"`
	Region  string `json:"region,omitempty"`
	Event   rawDoc `json:"event"`
}

// rawDoc is a document that is printed as it is.
type rawDoc []byte

// MarshalJSON implements json.Marshaler.
func (d rawDoc) MarshalJSON() ([]byte, error) { return d, nil }

// grouped is the outbox of parse: it takes the frames of events.
type grouped struct{ *trial }

// Publish implements topology.Outbox. The message is only lent.
func (g grouped) Publish(_ context.Context, m topology.Message) error {
	var columns messages.Columns
	view, err := messages.DecodeFrame(m.Data)
	if err != nil {
		return err
	}
	body, err := view.Body(nil)
	if err == nil {
		err = view.Columns(&columns)
	}
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.types[view.EventType()] += view.Len()
	for i, length := range columns.Lengths {
		g.rows = append(g.rows, row{
			Record: columns.Records[i], ID: view.ID(i).String(), Type: view.EventType(),
			Time:    time.Unix(0, columns.Times[i]).UTC().Format(time.RFC3339Nano),
			Account: columns.Accounts[columns.AccountOf[i]], Region: columns.Regions[columns.RegionOf[i]],
			Event: body[:length],
		})
		body = body[length:]
	}
	return nil
}

// print prints what was refused and the events of a frame, in the order of records.
func (t *trial) print() error {
	slices.SortStableFunc(t.bad, func(a, b refusal) int { return cmp.Compare(a.record, b.record) })
	for _, r := range t.bad {
		if err := t.printRefusal(r.code, r.reason, r.where, r.payload); err != nil {
			return err
		}
	}
	slices.SortStableFunc(t.rows, func(a, b row) int { return cmp.Compare(a.Record, b.Record) })
	for _, r := range t.rows {
		t.events++
		if t.limit > 0 && t.events > t.limit {
			continue
		}
		if err := t.printRow(r); err != nil {
			return err
		}
	}
	return nil
}

func (t *trial) printRow(r row) error {
	if t.asJSON {
		return writeLine(t.out, r)
	}
	_, err := fmt.Fprintf(t.out, "%d\t%s\t%s\t%s\t%s\t%s\n\t%s\n", r.Record, r.Time, r.Type, dash(r.Account), dash(r.Region), r.ID,
		strings.ReplaceAll(printable(string(r.Event)), "\n", "\n\t"))
	return err
}

// printRefusal prints one refusal: to standard output with --json, so that events
// and refusals can be told apart by their keys.
func (t *trial) printRefusal(code, reason, where string, payload []byte) error {
	if t.asJSON {
		return writeLine(t.out, struct {
			Refused string `json:"refused"`
			Reason  string `json:"reason"`
			Where   string `json:"where,omitempty"`
			Bytes   string `json:"bytes,omitempty"`
		}{code, reason, where, string(payload)})
	}
	const shown = 200
	text := string(payload[:min(len(payload), shown)])
	if len(payload) > shown {
		text += "…"
	}
	_, err := fmt.Fprintf(t.log, "refused: %s\n\t%s\n\t%s\n", where, reason, printable(text))
	return err
}

// sum prints what it came to.
func (t *trial) sum() error {
	refused := 0
	for _, n := range t.refused {
		refused += n
	}
	fmt.Fprintf(t.log, "format %s: %d events, %d refused", dash(t.format), t.events, refused)
	if t.skipped != "" {
		fmt.Fprintf(t.log, "; skipped as %s, which holds no events", t.skipped)
	}
	fmt.Fprintln(t.log)
	for _, name := range slices.Sorted(maps.Keys(t.types)) {
		fmt.Fprintf(t.log, "  %8d  %s\n", t.types[name], name)
	}
	for _, code := range slices.Sorted(maps.Keys(t.refused)) {
		fmt.Fprintf(t.log, "  %8d  refused: %s\n", t.refused[code], code)
	}
	if refused > 0 {
		if t.setting.Type == formats.Auto {
			fmt.Fprintln(t.log, "The format was found by the file's name and first bytes. If it is another one, name it with")
			fmt.Fprintln(t.log, "--format (penstock formats lists them), or give the key of the object with --key.")
		}
		return errSilent
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// fileObject serves a file as every object.
type fileObject struct{ path string }

// GetObject implements fetch.S3.
func (f fileObject) GetObject(_ context.Context, in *s3.GetObjectInput, _ string) (*s3.GetObjectOutput, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	from, to := int64(0), info.Size()-1
	out := &s3.GetObjectOutput{Body: file, ETag: aws.String(`"file"`), ContentLength: aws.Int64(info.Size())}
	if in.Range != nil {
		if n, _ := fmt.Sscanf(*in.Range, "bytes=%d-%d", &from, &to); n < 1 {
			return nil, errors.Join(fmt.Errorf("range %q is not understood", *in.Range), file.Close())
		}
		to = min(to, info.Size()-1)
		out.ContentLength = aws.Int64(to - from + 1)
		out.ContentRange = aws.String(fmt.Sprintf("bytes %d-%d/%d", from, to, info.Size()))
		out.Body = struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(file, from, to-from+1), file}
	}
	return out, nil
}

// remove deletes a spooled file. What is left is the system's to clean.
func remove(path string) { _ = os.Remove(path) }

// spool writes r to a temporary file and returns its path.
func spool(r io.Reader) (string, error) {
	file, err := os.CreateTemp("", "penstock-parse-*")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(file, r)
	if err = errors.Join(err, file.Close()); err != nil {
		return "", errors.Join(err, os.Remove(file.Name()))
	}
	return file.Name(), nil
}
