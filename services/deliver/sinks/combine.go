package sinks

import "time"

// combined makes one result of those of single events, nil for done. Where somebody
// has to act, or nothing was taken, that is the verdict on the whole; else what was
// not taken is an exception.
func combined(each []*Result) Result {
	var whole Result
	var stop, retry *Result
	taken := false
	var after time.Duration
	for _, r := range each {
		switch {
		case r == nil || r.Verdict == Done || r.Verdict == Reject:
			taken = true
			continue
		case r.Verdict == Stop && stop == nil:
			stop = r
		case r.Verdict == Retry && retry == nil:
			retry = r
		}
		after = max(after, r.After)
	}
	switch {
	case stop != nil:
		whole = Result{Verdict: Stop, Err: stop.Err}
	case !taken && retry != nil:
		whole = Result{Verdict: Retry, Err: retry.Err}
	}
	whole.After = after
	for i, r := range each {
		verdict, err := Done, error(nil)
		if r != nil {
			verdict, err = r.Verdict, r.Err
		}
		if verdict == Stop || verdict == Retry && whole.Verdict != Done {
			continue
		}
		if verdict != whole.Verdict {
			whole.Items = append(whole.Items, Exception{Index: i, Verdict: verdict, Err: err})
		}
	}
	return whole
}
