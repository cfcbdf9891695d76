package nix

// LogKind tells the messages of the log stream apart.
type LogKind uint8

// The kinds of log messages.
const (
	// LogText is a line for the user's terminal, normally with its newline. It
	// is not part of the stored build log.
	LogText LogKind = iota
	LogStartActivity
	LogStopActivity
	LogResult
)

// Verbosity of a message, as Nix counts it.
const (
	LevelError uint64 = iota
	LevelWarn
	LevelNotice
	LevelInfo
	LevelTalkative
	LevelChatty
	LevelDebug
	LevelVomit
)

// Activity types that the proxy names itself; others pass through.
const (
	ActivityUnknown      uint64 = 0
	ActivityCopyPath     uint64 = 100
	ActivityRealise      uint64 = 102
	ActivityCopyPaths    uint64 = 103
	ActivityBuilds       uint64 = 104
	ActivityBuild        uint64 = 105
	ActivitySubstitute   uint64 = 108
	ActivityBuildWaiting uint64 = 111
)

// Result types that the proxy names itself; others pass through.
const (
	ResultBuildLogLine     uint64 = 101
	ResultSetPhase         uint64 = 104
	ResultProgress         uint64 = 105
	ResultSetExpected      uint64 = 106
	ResultPostBuildLogLine uint64 = 107
)

// LogField is one field of an activity or result: a number, or a text if
// IsText.
type LogField struct {
	IsText bool
	Int    uint64
	Text   string
}

// IntField and TextField make fields.
func IntField(n uint64) LogField { return LogField{Int: n} }

// TextField makes a text field.
func TextField(s string) LogField { return LogField{IsText: true, Text: s} }

// LogMessage is one message of the log stream of an operation.
type LogMessage struct {
	Kind LogKind
	// ID is the activity's number, chosen by the sender and unique on its
	// connection only. 0 for LogText.
	ID uint64
	// Parent is the enclosing activity, 0 for none. Only of LogStartActivity.
	Parent uint64
	// Level is the verbosity. Only of LogStartActivity.
	Level uint64
	// Type is the activity's or the result's type.
	Type   uint64
	Text   string
	Fields []LogField
}

// Logger takes the log messages of an operation while it runs. Calls may come
// from several goroutines. Log may block while its reader is slow, so whoever
// must not wait for a reader puts a buffer between.
type Logger interface {
	Log(LogMessage)
}

// LoggerFunc makes a function a Logger.
type LoggerFunc func(LogMessage)

// Log calls f.
func (f LoggerFunc) Log(m LogMessage) { f(m) }

// Discard is a Logger that keeps nothing.
var Discard Logger = LoggerFunc(func(LogMessage) {})

// Line sends one line of text to the user's terminal.
func Line(log Logger, text string) { log.Log(LogMessage{Kind: LogText, Text: text + "\n"}) }
