package formats

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("vpcflow", "AWS VPC and transit gateway flow logs, as text or parquet.", shape{
		framing: vpcFlowFraming,
		sniff:   isVPCFlow,
	}, func() VPCFlowConfig { return VPCFlowConfig{} }, openVPCFlow)
}

// VPCFlowConfig configures the format vpcflow.
type VPCFlowConfig struct {
	// Columns names the columns of lines that come without a header, e.g. from
	// CloudWatch Logs, with spaces between them: "version vpc-id srcaddr dstaddr".
	// Default: the 14 columns of version 2. A header in the file wins.
	Columns string `yaml:"columns"`
	// KeepRaw adds the line itself to each document, under the key raw.
	KeepRaw bool `yaml:"keep_raw"`
}

// Validate reports every problem, each with the key to change.
func (c VPCFlowConfig) Validate() error {
	var p config.Problems
	p.Need(c.Columns == "" || isVPCHeader([]byte(c.Columns)), "columns",
		"use names of flow log fields with spaces between them, e.g. version srcaddr dstaddr start end")
	return p.Err()
}

const (
	vpcFlowType = "cloud.aws.vpc.flow"
	// vpcVersion is the newest version of records that we know.
	vpcVersion = 10
	// vpcDefault are the columns of version 2, the default format.
	vpcDefault = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status"
)

// The slots of the values that are read from a record.
const (
	vpcStart = iota
	vpcEnd
	vpcAccount
	vpcRegion
	vpcVersionField
	vpcSlots
)

// vpcFields are the known fields. Source: Amazon VPC User Guide, flow log records;
// Amazon VPC Transit Gateways, flow log records.
var vpcFields = func() map[string]column {
	const (
		names = "interface-id srcaddr dstaddr action log-status " +
			"vpc-id subnet-id instance-id type pkt-srcaddr pkt-dstaddr " +
			"az-id sublocation-type sublocation-id pkt-src-aws-service pkt-dst-aws-service flow-direction " +
			"resource-type tgw-id tgw-attachment-id tgw-src-vpc-account-id tgw-dst-vpc-account-id tgw-src-vpc-id tgw-dst-vpc-id " +
			"tgw-src-subnet-id tgw-dst-subnet-id tgw-src-eni tgw-dst-eni tgw-src-az-id tgw-dst-az-id tgw-pair-attachment-id " +
			"ecs-cluster-arn ecs-cluster-name ecs-container-instance-arn ecs-container-instance-id ecs-container-id " +
			"ecs-second-container-id ecs-service-name ecs-task-definition-arn ecs-task-arn ecs-task-id " +
			"reject-reason resource-id encryption-status"
		numbers = "srcport dstport protocol packets bytes tcp-flags traffic-path " +
			"packets-lost-no-route packets-lost-blackhole packets-lost-mtu-exceeded packets-lost-ttl-expired"
	)
	fields := map[string]column{
		"start":      {numeric: true, slot: vpcStart},
		"end":        {numeric: true, slot: vpcEnd},
		"account-id": {slot: vpcAccount},
		"region":     {slot: vpcRegion},
		"version":    {numeric: true, slot: vpcVersionField},
	}
	for name := range strings.FieldsSeq(names) {
		fields[name] = column{slot: -1}
	}
	for name := range strings.FieldsSeq(numbers) {
		fields[name] = column{numeric: true, slot: -1}
	}
	return fields
}()

// vpcField tells what is known about a field.
func vpcField(name string) (slot int, numeric bool) {
	if c, ok := vpcFields[name]; ok {
		return c.slot, c.numeric
	}
	return -1, false
}

func isVPCField(name string) bool { _, ok := vpcFields[name]; return ok }

// vpcName is the name of a parquet column as text files write it.
func vpcName(key string) string {
	name := strings.ReplaceAll(strings.ToLower(key), "_", "-")
	if _, ok := vpcFields[name]; ok {
		return name
	}
	return key
}

func openVPCFlow(c VPCFlowConfig, _ Deps) (Format, error) {
	reserved := []string{}
	if c.KeepRaw {
		reserved = append(reserved, rawField)
	}
	parse := func(header []byte) (*vpcLayout, error) {
		header = bytes.TrimRight(header, " \t\r")
		if !isVPCHeader(header) {
			return nil, errNoHeader.New(nil, "read flow log lines: the first line of the file, %d bytes, does not name the columns", len(header))
		}
		l := &vpcLayout{columns: newColumns(strings.Split(string(header), " "), vpcField, reserved...), size: len("{}")}
		l.news = newsOf(strings.Fields(string(header)), isVPCField)
		for _, c := range l.columns {
			l.size += len(c.key) + len(`",`)
		}
		return l, nil
	}
	return Format{
		New: func() Decoder {
			v := &vpcFlow{keepRaw: c.KeepRaw, headers: headers[*vpcLayout]{parse: parse}}
			v.versions = newVersion(func([]byte) bool { return false }) // asked for new ones only
			if c.Columns == "" {
				v.without, _ = parse([]byte(vpcDefault))
				v.guess = true
			} else {
				v.without, _ = parse([]byte(c.Columns))
			}
			v.rows = newRowReader(func(key string) column {
				c := newColumns([]string{vpcName(key)}, vpcField, reserved...)[0]
				c.unknown = !isVPCField(vpcName(key))
				return c
			})
			v.field = v.value
			v.other = func(c *column, value []byte) { v.meet(c); v.w.json(c.key, value) }
			return v
		},
		Place: func(key string) (string, string) { return awsPlace(key, "vpcflowlogs") },
		Base:  "cloud.aws.vpc", Table: "cloud.aws.vpc.unknown", // features DEV-20
		Grows: 4,
	}, nil
}

// vpcLayout is what a header says.
type vpcLayout struct {
	columns []column
	// size is how many bytes a document has besides the values, at most.
	size int
	news []News
}

// vpcFlow decodes flow log records.
//
//   - document: a field per column, with the names of the header; "-" leaves its
//     field out. Names of parquet columns get their dashes back.
//   - id: none of its own; lines can repeat.
//   - time: end, else start, else the slot that the key names.
//   - type: cloud.aws.vpc.flow.
//   - account: account-id, else the key's. region: region, else the key's.
//
// Lines without a header are read with the configured columns, else as version 2
// where they look like it. A line that has not as many fields as the header is
// refused, also when it is cut.
//
// Source: formats F-21; Amazon VPC User Guide, flow log records.
type vpcFlow struct {
	keepRaw bool
	headers headers[*vpcLayout]
	rows    *rowReader
	// without is the layout of lines without a header; guess tells that it is only
	// assumed.
	without *vpcLayout
	guess   bool

	layout  *vpcLayout
	slot    int64 // Unix ns, of the key, 0 for none
	w       fieldWriter
	found   [vpcSlots][]byte
	kept    [vpcSlots][]byte // copies of found, for what does not stay
	field   func(c *column, v []byte)
	other   func(c *column, v []byte)
	account names
	region  names
	// rowNews are what is new in this record, unless its header says all.
	rowNews  []News
	versions judge
}

// Start implements Starter.
func (v *vpcFlow) Start(h Head) (err error) {
	v.slot = vpcSlot(h.Key)
	v.layout = nil
	if len(h.Columns) > 0 {
		v.layout, err = v.headers.of(h.Columns)
	}
	return err
}

// Decode implements Decoder.
func (v *vpcFlow) Decode(rec []byte, d *Doc) error {
	*d = Doc{Type: vpcFlowType, Made: true}
	v.w.begin()
	v.found = [vpcSlots][]byte{}
	var err error
	if len(rec) > 0 && (rec[0] == '{' || rec[0] <= ' ' || rec[0] >= utf8.RuneSelf) && isObject(rec) {
		v.rowNews = v.rowNews[:0]
		d.Odd, err = v.rows.read(rec, v.field, v.other)
		d.New = v.rowNews
	} else {
		d.New, err = v.line(rec)
	}
	if err != nil {
		return err
	}
	if v.keepRaw {
		v.w.raw(rec)
	}
	d.Body = v.w.end()
	d.Odd |= v.w.odd()
	v.time(d)
	if account := v.found[vpcAccount]; string(account) != "unknown" {
		d.Account = v.account.of(account)
	}
	d.Region = v.region.of(v.found[vpcRegion])
	if text := v.found[vpcVersionField]; len(text) > 1 {
		if version, ok := parseEpoch(text, 0); ok && version > vpcVersion {
			d.Odd |= NewVersion
			v.rowNews, _ = v.versions.meet(append(v.rowNews[:0], d.New...), text)
			d.New = v.rowNews
		}
	}
	return nil
}

// meet notes an unknown column of a row.
func (v *vpcFlow) meet(c *column) {
	if c.unknown && len(v.rowNews) < maxNews {
		v.rowNews = append(v.rowNews, News{NewsColumn, nameOf(c.name)})
	}
}

// line reads a line of text, and tells what of its columns is not known.
func (v *vpcFlow) line(rec []byte) ([]News, error) {
	l, guessed := v.layout, false
	if l == nil {
		l, guessed = v.without, v.guess
	}
	line := rec
	for len(line) > 0 && (line[len(line)-1] == ' ' || line[len(line)-1] == '\r') {
		line = line[:len(line)-1]
	}
	if first := l.columns[0].name; len(line) >= len(first) && string(line[:len(first)]) == first && isVPCHeader(line) {
		return nil, v.refuse(rec, l, guessed)
	}
	clean := plain(line) == len(line)
	w := &v.w
	if clean {
		w.reserve(l.size + len(line))
	}
	pos := 0 // of the field
	for i := range l.columns {
		c := &l.columns[i]
		end := nextSpace(line, pos)
		if end <= pos || (end == len(line)) != (i == len(l.columns)-1) {
			return nil, v.refuse(rec, l, guessed)
		}
		value := line[pos:end]
		pos = end + 1
		switch {
		case isDash(value):
			continue
		case c.numeric && isInteger(value):
			w.digits(c.key, value)
		case c.numeric:
			w.number(c.key, value)
		case clean:
			w.plain(c.key, value)
		default:
			w.text(c.key, value)
		}
		if c.slot >= 0 {
			v.found[c.slot] = value
		}
	}
	version := v.found[vpcVersionField]
	if guessed && (string(version) != "2" || !isVPCStatus(line[lastField(line):])) || len(version) > 0 && version[0] > '9' && isVPCHeader(rec) {
		return nil, v.refuse(rec, l, guessed)
	}
	return l.news, nil
}

// lastField returns where the last field of a line begins.
func lastField(line []byte) int { return bytes.LastIndexByte(line, ' ') + 1 }

// refuse says why a line is none.
func (v *vpcFlow) refuse(rec []byte, l *vpcLayout, guessed bool) error {
	fields := bytes.Count(bytes.TrimRight(rec, " \r"), []byte(" ")) + 1
	switch {
	case isVPCHeader(rec):
		return errHeaderLine.New(nil, "read a flow log line of %d bytes: it is a header, with %d columns", len(rec), fields)
	case guessed:
		return errNoHeader.New(nil, "read a flow log line of %d fields: the file has no header, and the line is not of version 2", fields)
	}
	if fields == len(l.columns) {
		return errColumns.New(nil, "read a flow log line of %d fields: one of them is empty", fields)
	}
	return errColumns.New(nil, "read a flow log line of %d fields: its header names %d", fields, len(l.columns))
}

// isVPCStatus tells whether b is a value of log-status.
func isVPCStatus(b []byte) bool {
	switch string(b) {
	case "OK", "NODATA", "SKIPDATA":
		return true
	}
	return false
}

// value takes a value of a row.
func (v *vpcFlow) value(c *column, value []byte) {
	if isDash(value) {
		return
	}
	v.meet(c)
	v.w.add(c, value)
	if c.slot >= 0 {
		v.kept[c.slot] = append(v.kept[c.slot][:0], value...)
		v.found[c.slot] = v.kept[c.slot]
	}
}

// time finds the time of the event.
func (v *vpcFlow) time(d *Doc) {
	for _, slot := range [...]int{vpcEnd, vpcStart} {
		value := v.found[slot]
		if len(value) == 0 {
			continue
		}
		if d.Time, d.HasTime = parseSeconds(value); d.HasTime {
			return
		}
		if d.Time, d.HasTime = parseTime(value); d.HasTime { // a parquet file may have its own type for times
			return
		}
		d.Odd |= BadTime
	}
	if d.Odd&BadTime == 0 {
		d.Odd |= NoTime
	}
	d.Time, d.HasTime = v.slot, v.slot != 0
}

// vpcSlot reads the time off a key: ..._20260105T0805Z_<hash>.log.gz. 0 for none.
func vpcSlot(key string) int64 {
	const size = len("20260105T0805Z")
	key = key[strings.LastIndexByte(key, '/')+1:]
	for {
		at := strings.IndexByte(key, '_')
		if at < 0 || len(key) < at+1+size {
			return 0
		}
		key = key[at+1:]
		if k := key[:size]; k[8] == 'T' && k[13] == 'Z' {
			text := k[:4] + "-" + k[4:6] + "-" + k[6:8] + "T" + k[9:11] + ":" + k[11:13] + ":00Z"
			ns, _ := parseTime([]byte(text))
			return ns
		}
	}
}

func vpcFlowFraming(head []byte) framing.Framing {
	switch line := firstLine(head); {
	case isObject(head):
		return values
	case isVPCHeader(line):
		return framing.Framing{Kind: framing.Lines, Header: framing.FirstLine}
	}
	return framing.Framing{Kind: framing.Lines}
}

// isVPCHeader tells whether a line names columns: words of small letters, digits
// and dashes, at least half of them known.
func isVPCHeader(line []byte) bool {
	line = bytes.TrimRight(line, " \t\r")
	known, words := 0, 0
	for len(line) > 0 {
		word := line
		if end := bytes.IndexByte(line, ' '); end >= 0 {
			word, line = line[:end], line[end+1:]
		} else {
			line = nil
		}
		if len(word) == 0 || word[0] < 'a' || word[0] > 'z' {
			return false
		}
		for _, b := range word {
			if (b < 'a' || b > 'z') && b-'0' > 9 && b != '-' {
				return false
			}
		}
		if _, ok := vpcFields[string(word)]; ok {
			known++
		}
		words++
	}
	return known > 0 && known*2 >= words
}

// isVPCFlow goes by the key, else by the header or the columns.
func isVPCFlow(key string, head []byte) bool {
	if strings.Contains(key, "/vpcflowlogs/") || strings.Contains(key, "aws-service=vpcflowlogs/") || strings.Contains(key, "_vpcflowlogs_") {
		return true
	}
	const enough = 2
	own := func(key string) bool { // others have a version, a start and an end, too
		switch vpcName(key) {
		case "interface-id", "srcaddr", "dstaddr", "srcport", "dstport", "log-status", "pkt-srcaddr", "pkt-dstaddr", "tgw-id":
			return true
		}
		return false
	}
	if isObject(head) {
		return countKeys(head, own) >= enough
	}
	line := firstLine(head)
	if !isVPCHeader(line) {
		return false
	}
	known := 0
	for word := range strings.FieldsSeq(string(line)) {
		if own(word) {
			known++
		}
	}
	return known >= enough
}
