package topology

import (
	"slices"
	"strings"
)

// Role is who connects to the bus: a stage, operators and their console, or who manages
// the streams. The NATS user of a role has its name.
type Role string

// The roles beside those of the stages, which are named as they are.
const (
	// RoleOperate is the console's and that of operators' commands.
	RoleOperate Role = "operate"
	// RoleAdmin creates the streams, and brings them up to date.
	RoleAdmin Role = "admin"
)

// Roles lists all of them, the stages first.
var Roles = func() []Role {
	var all []Role
	for _, s := range Stages {
		all = append(all, Role(s))
	}
	return append(all, RoleOperate, RoleAdmin)
}()

// Known tells whether a role is one of [Roles].
func (r Role) Known() bool { return slices.Contains(Roles, r) }

// Inbox is what the subjects begin with on which a role gets answers. Nobody else may
// listen there.
func (r Role) Inbox() string { return "_INBOX_" + string(r) }

// Permissions are the subjects that a role may publish to and subscribe to. It may do
// nothing else, but answer what it was asked.
type Permissions struct {
	Publish   []string `json:"publish"`
	Subscribe []string `json:"subscribe"`
	// Deny is what it may not publish to although Publish covers it.
	Deny []string `json:"deny,omitempty"`
}

// extras are what roles may do beside reading and writing the streams as [Flow] has them.
// Each line has its reason: what is not needed for one is to go.
var extras = map[Role]func(*Permissions){
	Role(Ingest): func(p *Permissions) {
		p.share()                                 // sources divide their work over processes
		p.bucket(cursorBucket, ">")               // how far sources have read
		p.deny("$KV", cursorBucket, "penstock.>") // but not what operators keep there
		p.bucket(budgetBucket, ">")               // rates that processes share
		p.publish("$JS.API.DIRECT.GET.KV_" + budgetBucket)
		p.jobs()                    // backfills and reconciliations
		p.bucket(reportBucket, ">") // what reconciliations have found
		p.watch(reportBucket, ">")
		p.ask("ledger-known") // what the ledger knows of objects
		p.serve("rejudge.*")  // what sources refused is judged anew
		p.answer("sources")
		p.ease() // backfills wait for what is live
	},
	Role(Fetch): func(p *Permissions) { p.answer("sources") },
	Role(Parse): func(p *Permissions) { p.answer("sources") },
	Role(Dedupe): func(p *Permissions) {
		// A lane reads back what it put out, to know what it has seen.
		p.browse(Unique, "penstock.unique.*")
		p.browse(Seen, "penstock.seen.*")
		p.bucket(leaseBucket, laneGroup+".>") // lanes move between processes
		p.watch(leaseBucket, laneGroup+".>")
		p.serve("lane.*")
		p.listen(fullSubject + "*") // snapshots make room
	},
	Role(Route): func(p *Permissions) {
		p.publish("$JS.API.DIRECT.GET." + Events) // whether it had stored an event before
	},
	Role(Deliver): func(p *Permissions) {
		p.manage(Events) // destinations and replays have readers of their own, which come and go
		p.look(controlBucket, controlPrefix+">")
		p.watch(controlBucket, controlPrefix+">") // who is paused
		p.bucket(consumerBucket, ">")             // who fetches by webhook_pull, and how far
		p.watch(consumerBucket, ">")
		p.jobs() // replays
		p.answer("destinations")
		p.ease() // replays wait for what is live
	},
	RoleOperate: func(p *Permissions) {
		// What is redriven or parsed again goes in where it came from.
		for _, s := range []string{Notices, Records, Parsed} {
			p.write(s, row(s).Subjects...)
		}
		p.write(Events, "penstock.again.>")
		p.write(Quarantine, row(Quarantine).Subjects...)
		p.write(Ledger, row(Ledger).Subjects...)
		for _, s := range []string{Records, Quarantine, Ledger, Audit} {
			p.browse(s, "")
		}
		p.publish("$JS.API.STREAM.MSG.DELETE." + Quarantine)
		p.manage(Events) // the log is searched and followed; readers nobody needs are removed
		for _, s := range Flow {
			p.publish("$JS.API.STREAM.INFO."+s.Name, "$JS.API.CONSUMER.LIST."+s.Name)
		}
		for _, kv := range buckets { // whether they are as they should be
			p.publish("$JS.API.STREAM.INFO.KV_" + kv.name)
		}
		p.bucket(controlBucket, ">")
		p.watch(controlBucket, ">")
		p.bucket(consumerBucket, ">")
		p.watch(consumerBucket, ">")
		p.bucket(reportBucket, ">")
		p.watch(reportBucket, ">")
		p.bucket(cursorBucket, "penstock.>") // what was learned of the gaps of sources
		p.jobs()
		p.ask("ledger-known", "books", "rejudge.*")
		p.serve("ledger-known")
		p.serve("books")
		p.question("sources", "destinations", "freshness", "stats")
		p.answer("freshness")
		p.ease()
	},
	RoleAdmin: func(p *Permissions) {
		p.publish("$JS.API.INFO")
		names := []string{}
		for _, s := range Flow {
			names = append(names, s.Name)
		}
		for _, kv := range buckets {
			names = append(names, "KV_"+kv.name)
		}
		for _, n := range names {
			p.publish("$JS.API.STREAM.CREATE."+n, "$JS.API.STREAM.UPDATE."+n, "$JS.API.STREAM.INFO."+n, "$JS.API.CONSUMER.LIST."+n)
		}
		for _, c := range fixed {
			p.publish("$JS.API.CONSUMER.INFO."+c.Stream+"."+c.Durable, "$JS.API.CONSUMER.CREATE."+c.Stream+"."+c.Durable)
		}
	},
}

// fixed are the consumers that [Bus.Apply] makes, so that who reads need not be able to.
var fixed = []Consumer{FetchConsumer, ParseConsumer, RouteConsumer}

// row is the line of [Flow] of a stream.
func row(stream string) Stream {
	for _, s := range Flow {
		if s.Name == stream {
			return s
		}
	}
	return Stream{}
}

// keptBy is the role that trims a stream: its first reader, or operators where no stage
// reads.
func keptBy(s Stream) Role {
	if len(s.To) == 0 {
		return RoleOperate
	}
	return Role(s.To[0])
}

// Permissions of a role, from the tables of the flow.
func (r Role) Permissions() Permissions {
	p := &Permissions{}
	p.listen(r.Inbox() + ".>")
	p.publish("$SYS.REQ.USER.INFO") // what we may do
	if r != RoleAdmin {
		p.answer("stats")
	}
	for _, s := range Flow {
		if slices.Contains(s.From, Stage(r)) {
			p.write(s.Name, s.subjectsOf(Stage(r))...)
		}
		if slices.Contains(s.To, Stage(r)) {
			p.publish("$JS.API.STREAM.INFO." + s.Name)
			for _, c := range fixed {
				if c.Stream == s.Name && Role(c.Stage) == r {
					p.consume(c)
				}
			}
			if s.Hold == HoldLanes && r == Role(Dedupe) {
				p.browse(s.Name, s.Subjects[0])
			}
		}
		if keptBy(s) == r {
			p.keep(s)
		}
	}
	if more := extras[r]; more != nil {
		more(p)
	}
	for _, list := range []*[]string{&p.Publish, &p.Subscribe, &p.Deny} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	// What one pattern covers, another need not say.
	p.Publish, p.Subscribe = distinct(p.Publish), distinct(p.Subscribe)
	return *p
}

// subjectsOf are what a stage writes into a stream: its own where all stages do.
func (s Stream) subjectsOf(stage Stage) []string {
	switch s.Name {
	case Quarantine:
		return []string{"penstock.quarantine." + string(stage) + ".>"}
	case Ledger:
		return []string{LedgerSubject(stage)}
	}
	return s.Subjects
}

func (p *Permissions) publish(subjects ...string) { p.Publish = append(p.Publish, subjects...) }
func (p *Permissions) listen(subjects ...string)  { p.Subscribe = append(p.Subscribe, subjects...) }

// write: publish into a stream, see that it is there, and say when it is full.
func (p *Permissions) write(stream string, subjects ...string) {
	p.publish(subjects...)
	p.publish(fullSubject+stream, "$JS.API.STREAM.INFO."+stream)
}

// consume: work with a durable consumer that is there already.
func (p *Permissions) consume(c Consumer) {
	at := c.Stream + "." + c.Durable
	p.publish("$JS.API.CONSUMER.INFO."+at, "$JS.API.CONSUMER.MSG.NEXT."+at)
	p.acks(at)
}

// acks of a consumer, in the server's old form and the one with domain and account.
func (p *Permissions) acks(at string) { p.publish("$JS.ACK."+at+".>", "$JS.ACK.*.*."+at+".>") }

// browse: read a stream by position, with consumers of one's own that nobody
// acknowledges. Those of others are out of reach. filter is what may be read; "" is all.
func (p *Permissions) browse(stream, filter string) {
	p.publish("$JS.API.STREAM.INFO."+stream, "$JS.API.CONSUMER.INFO."+stream+".*", "$JS.API.CONSUMER.MSG.NEXT."+stream+".*", "$JS.API.CONSUMER.DELETE."+stream+".*")
	if filter == "" {
		p.publish("$JS.API.CONSUMER.CREATE."+stream+".>", "$JS.API.DIRECT.GET."+stream, "$JS.API.DIRECT.GET."+stream+".>", "$JS.API.STREAM.MSG.GET."+stream)
	} else {
		p.publish("$JS.API.CONSUMER.CREATE."+stream+".*."+filter, "$JS.API.DIRECT.GET."+stream+"."+filter)
	}
	for _, c := range fixed {
		if c.Stream == stream {
			for _, verb := range []string{"MSG.NEXT", "DELETE", "CREATE"} {
				p.Deny = append(p.Deny, "$JS.API.CONSUMER."+verb+"."+stream+"."+c.Durable)
			}
			p.Deny = append(p.Deny, "$JS.API.CONSUMER.CREATE."+stream+"."+c.Durable+".>")
		}
	}
}

// manage: read a stream, and make, use and delete durable consumers of it.
func (p *Permissions) manage(stream string) {
	p.browse(stream, "")
	p.publish("$JS.API.CONSUMER.LIST." + stream)
	p.acks(stream + ".*")
}

// keep: trim a stream.
func (p *Permissions) keep(s Stream) {
	p.publish("$JS.API.STREAM.INFO."+s.Name, "$JS.API.STREAM.PURGE."+s.Name, "$JS.API.CONSUMER.LIST."+s.Name, "$JS.API.DIRECT.GET."+s.Name)
	p.listen(fullSubject + s.Name)
	p.bucket(leaseBucket, keeperGroup+"."+s.Name)
	if s.Hold == HoldLanes { // see how far the lanes are
		p.look(leaseBucket, laneGroup+".*")
		p.publish("$JS.API.STREAM.INFO."+Parsed, "$JS.API.DIRECT.GET."+Unique+".penstock.unique.*")
	}
}

// look: read keys of a bucket.
func (p *Permissions) look(bucket, keys string) {
	p.publish("$JS.API.STREAM.INFO.KV_"+bucket, "$JS.API.DIRECT.GET.KV_"+bucket+".$KV."+bucket+"."+keys)
}

// bucket: read and write keys of a bucket.
func (p *Permissions) bucket(bucket, keys string) {
	p.look(bucket, keys)
	p.publish("$KV." + bucket + "." + keys)
}

// watch: follow keys of a bucket as they change.
func (p *Permissions) watch(bucket, keys string) {
	s := "KV_" + bucket
	p.publish("$JS.API.STREAM.INFO."+s, "$JS.API.CONSUMER.CREATE."+s+".*.$KV."+bucket+"."+keys,
		"$JS.API.CONSUMER.INFO."+s+".*", "$JS.API.CONSUMER.DELETE."+s+".*", "$JS.FC."+s+".>", "$JS.FC.*.*."+s+".>")
}

// deny keys of a bucket, though a pattern covers them.
func (p *Permissions) deny(kv, bucket, keys string) {
	at := kv + "." + bucket + "." + keys
	p.Deny = append(p.Deny, at, "$JS.API.DIRECT.GET.KV_"+bucket+"."+at)
}

// share: divide work with [Bus.Share].
func (p *Permissions) share() {
	p.bucket(leaseBucket, sharePrefix+">")
	p.watch(leaseBucket, sharePrefix+"*.>")
}

// jobs: take up jobs, and write down how they end.
func (p *Permissions) jobs() {
	p.bucket(jobBucket, ">")
	p.watch(jobBucket, ">")
	p.write(Audit, AuditSubject)
}

// ask names a request that others serve.
func (p *Permissions) ask(names ...string) {
	for _, n := range names {
		p.publish(requestSubject + n)
	}
}

func (p *Permissions) serve(name string) { p.listen(requestSubject + name) }

// question names one that all processes may answer.
func (p *Permissions) question(names ...string) {
	for _, n := range names {
		p.publish(questionSubject + n)
	}
}

func (p *Permissions) answer(name string) { p.listen(questionSubject + name) }

// ease: see what there is before each stage, by numbers alone.
func (p *Permissions) ease() {
	for _, c := range fixed {
		p.publish("$JS.API.STREAM.INFO."+c.Stream, "$JS.API.CONSUMER.INFO."+c.Stream+"."+c.Durable)
	}
	p.publish("$JS.API.STREAM.INFO."+Parsed, "$JS.API.STREAM.INFO."+Events, "$JS.API.CONSUMER.LIST."+Events)
	p.look(leaseBucket, laneGroup+".*")
	p.ask("lane.*")
}

// May tells whether a user with these permissions may publish to a subject.
func (p *Permissions) May(subject string) bool {
	fits := func(patterns []string) bool {
		return slices.ContainsFunc(patterns, func(f string) bool { return covers(f, subject) })
	}
	return fits(p.Publish) && !fits(p.Deny)
}

// roleOf is the role of a user by the name that [Role] documents, "" for others.
func roleOf(user string) Role {
	if r := Role(strings.TrimSpace(user)); r.Known() {
		return r
	}
	return ""
}
