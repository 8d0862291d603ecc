package books

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	factsFolded = promauto.NewCounter(prometheus.CounterOpts{
		Name: "penstock_ledger_facts_total", Help: "Facts of the ledger that were folded into the books.",
	})
	factsUnread = promauto.NewCounter(prometheus.CounterOpts{
		Name: "penstock_ledger_unreadable_messages_total", Help: "Messages of the ledger that could not be read.",
	})
	pullsUnsettled = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_ledger_unsettled_pulls", Help: "Objects and messages whose records do not add up (yet): those under way among them.",
	})
	pullsUnbalanced = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_ledger_unbalanced_pulls", Help: "Objects and messages whose records have not added up for longer than 15 minutes: something is missing, or too much.",
	})
	messagesBehind = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_ledger_behind_messages", Help: "Messages of the ledger that are not folded yet.",
	})
	messagesLost = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_ledger_lost_messages", Help: "Messages of the ledger that were trimmed before they were folded.",
	})
	booksBytes = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_ledger_bytes", Help: "Size of the database of the books.",
	})
)
