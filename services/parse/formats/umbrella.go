package formats

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("umbrella", "Cisco Umbrella logs: dns, ip, proxy, firewall, intrusion, dlp, audit and others, as CSV.", shape{
		framing: umbrellaFraming,
		sniff:   isUmbrella,
		skip:    skipUmbrella,
	}, func() UmbrellaConfig { return UmbrellaConfig{EventType: umbrellaType} }, openUmbrella)
}

// UmbrellaConfig configures the format umbrella.
type UmbrellaConfig struct {
	// Account of all records that do not name their organisation, e.g. the id of
	// the Umbrella organisation. Default: the organisation in the key of a bucket
	// that Cisco manages.
	Account string `yaml:"account"`
	// EventType is what comes before the dot and the type of the log.
	EventType string `yaml:"event_type"`
	// DevoTypes knows the types dns, ip and proxy only, as the Devo collector does;
	// all others are unknown.
	DevoTypes bool `yaml:"devo_types"`
	// Lists writes cells that hold a list (identities, categories and others) as
	// arrays of text, not as the text that they are.
	Lists bool `yaml:"lists"`
	// KeepRaw adds the row itself to each document, under the key raw.
	KeepRaw bool `yaml:"keep_raw"`
}

// Validate reports every problem, each with the key to change.
func (c UmbrellaConfig) Validate() error {
	var p config.Problems
	needEventType(&p, c.EventType)
	p.Need(c.EventType != "", "event_type", "name the first words of the event types, e.g. "+umbrellaType)
	p.Need(len(c.Account) <= maxNameSize, "account", "use at most 128 bytes")
	return p.Err()
}

const umbrellaType = "sig.cisco.umbrella"

// umbrellaKind is a type of log.
type umbrellaKind struct {
	name    string
	columns []string // of a file without a header
	least   int      // cells of the first version
	id      string   // the column of the natural id, "" for none
	// many tells that several rows have the same id.
	many bool
	// aliases are other names for columns, in headers, without case and spaces.
	aliases map[string]string
}

// The types of log.
// Source: formats F-18, F-19, F-20; Cisco Umbrella User Guide, log formats.
var (
	umbrellaDNS = &umbrellaKind{
		name: "dns", least: 10, columns: strings.Fields("timestamp most_granular_identity identities internal_ip external_ip " +
			"action query_type response_code domain categories most_granular_identity_type identity_types blocked_categories " +
			"rule_id destination_countries organization_id"),
		aliases: map[string]string{"policyidentity": "most_granular_identity", "policyidentitytype": "most_granular_identity_type"},
	}
	umbrellaIP    = &umbrellaKind{name: "ip", least: 7, columns: strings.Fields("timestamp identity source_ip source_port destination_ip destination_port categories")}
	umbrellaProxy = &umbrellaKind{
		name: "proxy", least: 21, columns: strings.Fields("timestamp policy_identity_label internal_client_ip external_client_ip " +
			"destination_ip content_type action url referer user_agent status_code request_size response_size response_body_size sha256 categories " +
			"av_detections puas amp_disposition amp_malware_name amp_score policy_identity_type blocked_categories identities identity_types " +
			"request_method dlp_status certificate_errors file_name ruleset_id rule_id destination_list_ids isolate_action file_action warn_status " +
			"forwarding_method producer msp_organization_id geo_location_of_blocked_destination_countries application_ids hostname data_center egress " +
			"server_name time_based_rule security_overridden detected_response_file_type warn_categories organization_id"),
		aliases: map[string]string{
			"policyidentity": "policy_identity_label", "internalip": "internal_client_ip", "externalip": "external_client_ip",
			"verdict": "action", "statuscode": "status_code", "shasha256": "sha256", "ampmalware": "amp_malware_name",
		},
	}
	umbrellaFirewall = &umbrellaKind{name: "firewall", least: 14, columns: strings.Fields("timestamp origin_ids identities identity_type direction protocol " +
		"packet_size source_ip source_port destination_ip destination_port data_center rule_id action fqdns destination_list_ids")}
	umbrellaIntrusion = &umbrellaKind{
		name: "intrusion", least: 17, id: "event_id", columns: strings.Fields("timestamp identities identity_types gid sid message " +
			"signature_list_id severity classification cves protocol event_id source_ip source_port destination_ip destination_port action"),
		aliases: map[string]string{"generatorid": "gid", "signatureid": "sid"},
	}
	umbrellaDLP = &umbrellaKind{
		name: "dlp", least: 17, id: "unique_event_id", many: true, columns: strings.Fields("timestamp event_type unique_event_id severity " +
			"identity owner name application destination action rule data_classification data_identifier content_type file_size sha256 file_label " +
			"application_category_name traffic_direction private_resource_name private_resource_group_name destination_protocol destination_ip " +
			"destination_port organization_id"),
		aliases: map[string]string{"identities": "identity", "rulename": "rule", "sha256hash": "sha256"},
	}
	umbrellaAudit = &umbrellaKind{
		name: "audit", least: 9, id: "id", columns: strings.Fields("id timestamp email user type action logged_in_from before after"),
		aliases: map[string]string{"time": "timestamp"},
	}
	umbrellaVPN     = &umbrellaKind{name: "vpn", least: 2, columns: []string{"timestamp"}}
	umbrellaZTNA    = &umbrellaKind{name: "ztna", least: 2, columns: []string{"timestamp"}}
	umbrellaUnknown = &umbrellaKind{name: "unknown", least: 1}
)

// umbrellaFolders are the folders that the objects of each type lie in.
var umbrellaFolders = map[string]*umbrellaKind{
	"dnslogs": umbrellaDNS, "proxylogs": umbrellaProxy, "iplogs": umbrellaIP, "auditlogs": umbrellaAudit,
	"firewalllogs": umbrellaFirewall, "firewallogs": umbrellaFirewall, "cloudfirewalllogs": umbrellaFirewall, "cdfwlogs": umbrellaFirewall,
	"intrusionlogs": umbrellaIntrusion, "dlplogs": umbrellaDLP, "vpnlogs": umbrellaVPN, "ravpnlogs": umbrellaVPN, "ztnalogs": umbrellaZTNA,
}

// umbrellaNumbers are the columns whose numbers count something.
var umbrellaNumbers = setOf("source_port destination_port packet_size status_code request_size response_size response_body_size amp_score file_size gid sid")

// umbrellaLists are the columns that hold lists.
var umbrellaLists = setOf("identities identity_types categories blocked_categories warn_categories av_detections puas destination_list_ids " +
	"application_ids fqdns cves destination_countries geo_location_of_blocked_destination_countries origin_ids certificate_errors")

func setOf(words string) map[string]bool {
	set := map[string]bool{}
	for word := range strings.FieldsSeq(words) {
		set[word] = true
	}
	return set
}

// timeWords begin the headers of all types, or stand second: in audit logs.
var timeWords = setOf("timestamp time date datetime")

// squeeze makes names of columns comparable: "Internal IP", "internal_ip" and
// "InternalIp" are the same.
func squeeze(name []byte) string {
	out := make([]byte, 0, len(name))
	for _, c := range bytes.ToLower(name) {
		if 'a' <= c && c <= 'z' || c-'0' <= 9 {
			out = append(out, c)
		}
	}
	return string(out)
}

// column is the name of a column that a header calls by name.
func (k *umbrellaKind) column(name string) string {
	squeezed := squeeze([]byte(name))
	if alias, ok := k.aliases[squeezed]; ok {
		return alias
	}
	for _, known := range k.columns {
		if squeezed == squeeze([]byte(known)) {
			return known
		}
	}
	if timeWords[squeezed] {
		return "timestamp"
	}
	return strings.Trim(string(appendWords(nil, []byte(strings.ReplaceAll(strings.TrimSpace(name), ".", " ")), maxNameSize)), "_")
}

// knows counts the columns of a header that k has.
func (k *umbrellaKind) knows(header []string) (n int) {
	for _, name := range header {
		if slices.Contains(k.columns, k.column(name)) {
			n++
		}
	}
	return n
}

func openUmbrella(c UmbrellaConfig, _ Deps) (Format, error) {
	grows := 3
	if c.KeepRaw {
		grows++
	}
	return Format{New: func() Decoder { return newUmbrella(c) }, Place: umbrellaPlace, Base: c.EventType, Grows: grows}, nil
}

// umbrellaLayout is what the cells of a row mean.
type umbrellaLayout struct {
	kind         *umbrellaKind
	eventType    string
	columns      []umbrellaColumn
	least        int
	time, org    int // cells, -1 for none
	id, identity int
}

type umbrellaColumn struct {
	column
	list bool
}

// umbrella decodes rows of Umbrella's logs.
//
//   - document: a field per cell that is not empty. Names are those of the log
//     format; cells that no known version has are column<n>. With a header the
//     names are its, where they are not known ones.
//   - type: sig.cisco.umbrella.<dns, ip, proxy, firewall, intrusion, dlp, audit,
//     vpn, ztna>, by the folder of the object, else by the header, else by what
//     the row looks like; else unknown.
//   - time: the first column, in audit logs the second. UTC.
//   - id: the audit id, and the event id of intrusion events; for dlp, where one
//     event has several rows, the event id and the row. Others have none.
//   - account: the organisation of the row, else the configured one, else that
//     of the key.
//
// The number of cells may differ from row to row. A row with fewer cells than the
// first version of its log had is refused, one whose time is none as well.
//
// Source: formats F-18, F-19, F-20.
type umbrella struct {
	config  UmbrellaConfig
	header  cells
	headers map[*umbrellaKind]*headers[*umbrellaLayout] // by what the folder tells
	layouts map[*umbrellaKind]*umbrellaLayout
	kind    *umbrellaKind   // of the folder, nil where it does not tell
	layout  *umbrellaLayout // of the header, nil without one

	cells    cells
	w        fieldWriter
	accounts names
	parts    [4][]byte
	// folder names the type of log where that is not known.
	folder string
	news   []News
}

func newUmbrella(c UmbrellaConfig) *umbrella {
	return &umbrella{
		config: c, headers: map[*umbrellaKind]*headers[*umbrellaLayout]{}, layouts: map[*umbrellaKind]*umbrellaLayout{},
		cells: cells{comma: ','}, header: cells{comma: ','},
	}
}

// Start implements Starter.
func (u *umbrella) Start(h Head) (err error) {
	u.kind, _ = umbrellaFolder(h.Key)
	u.folder = umbrellaUnknown.name
	if words := strings.Split(h.Key, "/"); u.kind == umbrellaUnknown && len(words) > 2 {
		u.folder = nameOf(words[len(words)-3])
	}
	if u.layout = nil; len(h.Columns) == 0 {
		return nil
	}
	known := u.headers[u.kind]
	if known == nil {
		kind := u.kind
		known = &headers[*umbrellaLayout]{parse: func(header []byte) (*umbrellaLayout, error) { return u.read(header, kind) }}
		u.headers[kind] = known
	}
	u.layout, err = known.of(h.Columns)
	return err
}

// read makes a layout of a header. kind is what the folder tells, nil for nothing.
func (u *umbrella) read(header []byte, kind *umbrellaKind) (*umbrellaLayout, error) {
	if why, at := u.header.cut(header); why != "" {
		return nil, errNoHeader.New(nil, "read the header of an Umbrella log: %s at byte %d", why, at)
	}
	names := u.header.texts()
	if kind == nil {
		kind = umbrellaByHeader(names)
	}
	for i, name := range names {
		names[i] = kind.column(name)
	}
	return u.make(kind, names), nil
}

// umbrellaByHeader finds the type of log that has most of the columns, at least four
// of them.
func umbrellaByHeader(names []string) *umbrellaKind {
	kind, most := umbrellaUnknown, 4
	for _, k := range umbrellaFolders {
		if n := k.knows(names); n > most || n == most && k.name < kind.name {
			kind, most = k, n
		}
	}
	return kind
}

// of returns the layout of rows without a header.
func (u *umbrella) of(kind *umbrellaKind) *umbrellaLayout {
	l := u.layouts[kind]
	if l == nil {
		l = u.make(kind, kind.columns)
		l.least = kind.least
		u.layouts[kind] = l
	}
	return l
}

func (u *umbrella) make(kind *umbrellaKind, names []string) *umbrellaLayout {
	l := &umbrellaLayout{kind: kind, eventType: u.config.EventType + "." + kind.name, least: 1, time: -1, org: -1, id: -1, identity: -1}
	if u.config.DevoTypes && kind != umbrellaDNS && kind != umbrellaIP && kind != umbrellaProxy {
		l.eventType = u.config.EventType + "." + umbrellaUnknown.name
	}
	for i, name := range names {
		if name == "" {
			names[i] = umbrellaExtra(i)
		}
	}
	kinded := len(kind.columns) > 1 // else nobody knows which columns there are
	for _, c := range newColumns(names, func(name string) (int, bool) { return -1, umbrellaNumbers[name] }, rawField) {
		c.unknown = kinded && !slices.Contains(kind.columns, c.name)
		l.columns = append(l.columns, umbrellaColumn{c, umbrellaLists[c.name]})
	}
	for i, name := range names {
		switch name {
		case "timestamp":
			l.time = i
		case "organization_id":
			l.org = i
		case "identity", "most_granular_identity", "policy_identity_label":
			l.identity = i
		}
		if name == kind.id && name != "" {
			l.id = i
		}
	}
	return l
}

// umbrellaExtra is the name of the column of a cell that nothing names.
func umbrellaExtra(i int) string { return "column" + strconv.Itoa(i+1) }

// grow adds the column of one more cell.
func (l *umbrellaLayout) grow() {
	name := umbrellaExtra(len(l.columns))
	for slices.ContainsFunc(l.columns, func(c umbrellaColumn) bool { return c.name == name }) { // a header may say so
		name += "_"
	}
	l.columns = append(l.columns, umbrellaColumn{column: column{name: name, key: newKey(name), slot: -1, unknown: len(l.kind.columns) > 1}})
}

// Decode implements Decoder.
func (u *umbrella) Decode(rec []byte, d *Doc) error {
	if why, at := u.cells.cut(rec); why != "" {
		return errLine.New(nil, "read a row of an Umbrella log, %d bytes: %s, at byte %d", len(rec), why, at)
	}
	count := len(u.cells.list)
	l := u.layout
	if l == nil {
		kind := u.kind
		if kind == nil {
			kind = umbrellaLooks(&u.cells)
		}
		l = u.of(kind)
	}
	*d = Doc{Made: true, Type: l.eventType}
	if l.kind == umbrellaUnknown {
		d.Odd |= NoType
	}
	if err := u.time(rec, l, d); err != nil {
		return err
	}
	if count < l.least {
		return errColumns.New(nil, "read a row of an Umbrella %s log: it has %d cells, the first version of that log has %d", l.kind.name, count, l.least)
	}
	for len(l.columns) < count {
		l.grow()
	}
	u.w.begin()
	u.news = u.news[:0]
	clean := plainBut(rec, '"')
	if l.kind == umbrellaUnknown {
		u.news = append(u.news, News{NewsType, u.folder})
	}
	for i := range count {
		v := u.cells.at(i)
		c := &l.columns[i]
		switch {
		case len(v) == 0:
			continue
		case c.list && u.config.Lists:
			u.list(c.key, v, l)
		case clean && !u.cells.list[i].doubled:
			u.w.addPlain(&c.column, v)
		default:
			u.w.add(&c.column, v)
		}
		if c.unknown && len(u.news) < maxNews {
			u.news = append(u.news, News{NewsColumn, nameOf(c.name)})
		}
	}
	if u.config.KeepRaw {
		u.w.raw(rec)
	}
	d.Body = u.w.end()
	d.Odd |= u.w.odd()
	d.New = u.news
	if d.Account = u.accounts.of(u.cells.at(l.org)); d.Account == "" {
		d.Account = u.config.Account
	}
	u.id(rec, l, d)
	return nil
}

// time reads the time, and refuses what cannot be a row for want of one.
func (u *umbrella) time(rec []byte, l *umbrellaLayout, d *Doc) error {
	at := l.time
	if l.kind == umbrellaUnknown && at < 0 {
		for i := range 2 {
			if d.Time, d.HasTime = parseZoneless(u.cells.at(i)); d.HasTime {
				return nil
			}
		}
		if u.kind == nil && u.layout == nil {
			return errLine.New(nil, "read a row of %d cells, %d bytes, of an Umbrella log: neither of the first two is a time", len(u.cells.list), len(rec))
		}
		d.Odd |= NoTime
		return nil
	}
	v := u.cells.at(at)
	if len(v) == 0 {
		d.Odd |= NoTime
		return nil
	}
	if d.Time, d.HasTime = parseZoneless(v); d.HasTime {
		return nil
	}
	if isUmbrellaHeader(&u.cells) {
		return errHeaderLine.New(nil, "read a row of an Umbrella %s log: it is a header, with %d columns", l.kind.name, len(u.cells.list))
	}
	return errLine.New(nil, "read a row of an Umbrella %s log, %d bytes: cell %d should be a time such as 2026-01-05 17:48:41", l.kind.name, len(rec), at+1)
}

// kindUmbrella begins the ids of records with a natural id.
var kindUmbrella = []byte("umbrella")

func (u *umbrella) id(rec []byte, l *umbrellaLayout, d *Doc) {
	if l.kind.id == "" {
		return
	}
	v := u.cells.at(l.id)
	if len(v) == 0 {
		d.Odd |= NoID
		return
	}
	u.parts = [...][]byte{kindUmbrella, l.columns[l.id].key, v, rec}
	parts := u.parts[:3]
	if l.kind.many {
		parts = u.parts[:]
	}
	d.ID, d.HasID = newID(parts...), true
}

// list writes a cell as an array. Identities may have a comma in the first one,
// which is the one that the row names alone.
func (u *umbrella) list(k fieldKey, v []byte, l *umbrellaLayout) {
	b := append(append(u.w.buf, k[:len(k)-1]...), '[')
	first := -1
	if l.identity >= 0 {
		one := u.cells.list[l.identity]
		if name := u.cells.row[one.start:one.end]; !one.doubled && bytes.HasPrefix(v, name) && (len(v) == len(name) || v[len(name)] == ',') {
			first = len(name)
		}
	}
	for {
		n := first
		if first = -1; n < 0 {
			n = bytes.IndexByte(v, ',')
		}
		if n < 0 || n == len(v) {
			n = len(v)
		}
		b = append(b, '"')
		var bad bool
		b, bad = appendText(b, v[:n])
		u.w.bad = u.w.bad || bad
		if b = append(b, '"', ','); n == len(v) {
			break
		}
		v = v[n+1:]
	}
	b[len(b)-1] = ']'
	u.w.buf = append(b, ',')
}

// umbrellaLooks guesses the type of log of a row by its cells.
func umbrellaLooks(c *cells) *umbrellaKind {
	n := len(c.list)
	if _, ok := parseZoneless(c.at(0)); !ok {
		if _, ok := parseZoneless(c.at(1)); ok && n >= umbrellaAudit.least {
			return umbrellaAudit
		}
		return umbrellaUnknown
	}
	switch {
	case n <= 9 && n >= umbrellaIP.least && isDigits(c.at(3)) && isDigits(c.at(5)) && isAddress(c.at(2)) && isAddress(c.at(4)):
		return umbrellaIP
	case n >= umbrellaFirewall.least && bytes.HasPrefix(c.at(1), []byte("[")) && isWord(c.at(4), "INBOUND", "OUTBOUND", "TO INTERNET", "FROM INTERNET"):
		return umbrellaFirewall
	case n >= umbrellaIntrusion.least && isDigits(c.at(3)) && isDigits(c.at(4)) && !isDigits(c.at(5)):
		return umbrellaIntrusion
	case n >= umbrellaDLP.least && isWord(c.at(1), "Real Time", "SaaS API", "AI Guardrails"):
		return umbrellaDLP
	case n >= umbrellaProxy.least && isWord(c.at(6), "ALLOWED", "BLOCKED", "PROXIED", "WARNED", "ISOLATED", "ERROR"),
		n >= umbrellaProxy.least && len(c.at(6)) == 0 && bytes.Contains(c.at(7), []byte("://")):
		return umbrellaProxy
	case n >= umbrellaDNS.least && isQueryType(c.at(6)):
		return umbrellaDNS
	}
	return umbrellaUnknown
}

// isQueryType tells whether v is like "1 (A)".
func isQueryType(v []byte) bool {
	n := run(v, 0)
	return n > 0 && bytes.HasPrefix(v[n:], []byte(" (")) && v[len(v)-1] == ')'
}

// isAddress tells whether v looks like an IP address, or is empty.
func isAddress(v []byte) bool {
	for _, c := range v {
		if hex(c) < 0 && c != '.' && c != ':' {
			return false
		}
	}
	return len(v) == 0 || bytes.IndexByte(v, '.') >= 0 || bytes.IndexByte(v, ':') >= 0
}

func isDigits(v []byte) bool { return len(v) > 0 && run(v, 0) == len(v) }

func isWord(v []byte, words ...string) bool {
	for _, w := range words {
		if strings.EqualFold(string(v), w) {
			return true
		}
	}
	return false
}

// isUmbrellaHeader tells whether the row names columns: it names that of the time
// first or second, and none of the two is a time.
func isUmbrellaHeader(c *cells) bool {
	named := false
	for i := range 2 {
		if _, ok := parseZoneless(c.at(i)); ok {
			return false
		}
		named = named || timeWords[squeeze(c.at(i))]
	}
	return named && len(c.list) > 2
}

// umbrellaFolder returns the type of the objects in the folder that key lies in,
// nil for a key of another layout: [prefix/]<folder>/<YYYY-MM-DD>/<file>. before
// is what comes before the folder.
func umbrellaFolder(key string) (kind *umbrellaKind, before string) {
	file := strings.LastIndexByte(key, '/')
	if file < 0 {
		return nil, ""
	}
	date := strings.LastIndexByte(key[:file], '/')
	if date < 0 || !isDate(key[date+1:file]) {
		return nil, ""
	}
	folder := strings.LastIndexByte(key[:date], '/') + 1
	name := strings.ToLower(key[folder:date])
	kind = umbrellaFolders[name]
	if kind == nil && strings.HasSuffix(name, "logs") {
		kind = umbrellaUnknown
	}
	return kind, key[:max(folder-1, 0)]
}

// isDate tells whether s is like 2026-01-05.
func isDate(s string) bool {
	return len(s) == 10 && s[4] == '-' && s[7] == '-' && isDigits([]byte(s[:4]+s[5:7]+s[8:]))
}

// umbrellaPlace reads the organisation off the key of a bucket that Cisco manages:
// <organisation>_<hash>/dnslogs/...
func umbrellaPlace(key string) (account, region string) {
	kind, before := umbrellaFolder(key)
	if kind == nil {
		return "", ""
	}
	before = before[strings.LastIndexByte(before, '/')+1:]
	org, hash, ok := strings.Cut(before, "_")
	if !ok || len(hash) < 8 || len(org) > maxNameSize || !isDigits([]byte(org)) {
		return "", ""
	}
	return org, ""
}

func umbrellaFraming(head []byte) framing.Framing {
	f := framing.Framing{Kind: framing.CSV, Comma: ','}
	c := cells{comma: ','}
	row, _ := firstRow(head)
	if why, _ := c.cut(row); why == "" && isUmbrellaHeader(&c) {
		f.Header = framing.FirstLine
	}
	return f
}

// isUmbrella goes by the key, else by the first row: it begins with a quote, and it
// is of a type that is known by its looks, or a header with its columns.
func isUmbrella(key string, head []byte) bool {
	if strings.HasPrefix(key[strings.LastIndexByte(key, '/')+1:], "README_FROM_UMBRELLA") {
		return true
	}
	if kind, _ := umbrellaFolder(key); kind != nil && kind != umbrellaUnknown {
		return len(trimSpace(head)) == 0 || !isJSON(head)
	}
	c := cells{comma: ','}
	row, whole := firstRow(head)
	if why, _ := c.cut(row); len(row) == 0 || why != "" || !whole && len(head) > 1<<10 {
		return false
	}
	if !isUmbrellaHeader(&c) {
		return row[0] == '"' && umbrellaLooks(&c) != umbrellaUnknown
	}
	names := c.texts()
	for _, k := range umbrellaFolders {
		if k.knows(names) >= max(5, len(k.columns)/2) {
			return true
		}
	}
	return false
}

// isJSON tells whether head begins as an object or array of JSON does.
func isJSON(head []byte) bool {
	head = trimSpace(head)
	return len(head) > 0 && (head[0] == '{' || head[0] == '[')
}

const skipCodeReadme = "parse.umbrella_readme"

// skipUmbrella finds the text that Cisco puts into a bucket to test it.
func skipUmbrella(key string, _ []byte) string {
	if strings.HasPrefix(key[strings.LastIndexByte(key, '/')+1:], "README") {
		return skipCodeReadme
	}
	return ""
}
