package ocsf

// other is the id for what the schema does not name; the caption beside it is the
// source's own.
const other = 99

// class is a class of the schema, as far as it is used.
type class struct {
	uid, category      int
	name, categoryName string
	quoted             []byte
	activities         map[int]string
	// required must be there; of each list in oneOf something must.
	required []string
	oneOf    [][]string
}

func newClass(c class) *class {
	c.quoted = []byte(`"` + c.name + `"`)
	c.activities[0], c.activities[other] = "Unknown", "Other"
	return &c
}

// The classes. Source: schema.ocsf.io/1.5.0/classes.
var (
	baseEvent = newClass(class{name: "Base Event", categoryName: "Uncategorized", activities: map[int]string{}})

	detectionFinding = newClass(class{
		uid: 2004, name: "Detection Finding", category: 2, categoryName: "Findings",
		activities: map[int]string{1: "Create", 2: "Update", 3: "Close"}, required: []string{"finding_info.uid"},
	})
	authentication = newClass(class{
		uid: 3002, name: "Authentication", category: 3, categoryName: "Identity & Access Management",
		activities: map[int]string{1: "Logon", 2: "Logoff", 3: "Authentication Ticket", 4: "Service Ticket Request", 5: "Service Ticket Renew", 6: "Preauth"},
		required:   []string{"user"}, oneOf: [][]string{{"service", "dst_endpoint"}},
	})
	networkActivity = newClass(class{
		uid: 4001, name: "Network Activity", category: 4, categoryName: "Network Activity",
		activities: map[int]string{1: "Open", 2: "Close", 3: "Reset", 4: "Fail", 5: "Refuse", 6: "Traffic", 7: "Listen"},
		oneOf:      [][]string{{"dst_endpoint", "src_endpoint"}},
	})
	httpActivity = newClass(class{
		uid: 4002, name: "HTTP Activity", category: 4, categoryName: "Network Activity",
		activities: map[int]string{1: "Connect", 2: "Delete", 3: "Get", 4: "Head", 5: "Options", 6: "Post", 7: "Put", 8: "Trace"},
		oneOf:      [][]string{{"dst_endpoint", "src_endpoint"}, {"http_request", "http_response"}},
	})
	dnsActivity = newClass(class{
		uid: 4003, name: "DNS Activity", category: 4, categoryName: "Network Activity",
		activities: map[int]string{1: "Query", 2: "Response", 6: "Traffic"},
		oneOf:      [][]string{{"dst_endpoint", "src_endpoint"}},
	})
	apiActivity = newClass(class{
		uid: 6003, name: "API Activity", category: 6, categoryName: "Application Activity",
		activities: map[int]string{1: "Create", 2: "Read", 3: "Update", 4: "Delete"},
		required:   []string{"actor", "api.operation", "src_endpoint"},
	})
)

var classes = []*class{baseEvent, detectionFinding, authentication, networkActivity, httpActivity, dnsActivity, apiActivity}

// objects are what objects require that are there: one of these attributes. Inner
// objects come first.
// Source: schema.ocsf.io/1.5.0/objects.
var objects = []struct {
	path string
	need []string
}{
	{"actor.user", []string{"account", "name", "uid"}},
	{"actor", []string{"invoked_by", "session", "user"}},
	{"api.request", []string{"uid"}},
	{"api.service", []string{"name", "uid"}},
	{"connection_info", []string{"direction_id"}},
	{"dst_endpoint", endpoint},
	{"firewall_rule", []string{"name", "uid"}},
	{"http_request.url", []string{"path", "url_string"}},
	{"http_response", []string{"code"}},
	{"load_balancer", []string{"name", "uid"}},
	{"query", []string{"hostname"}},
	{"remediation", []string{"desc"}},
	{"service", []string{"name", "uid"}},
	{"src_endpoint", endpoint},
	{"tls", []string{"version"}},
	{"user", []string{"account", "name", "uid"}},
}

var endpoint = []string{"hostname", "instance_uid", "interface_uid", "ip", "name", "svc_name", "uid"}
