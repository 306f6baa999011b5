/* Option parsing shared by all commands: each command describes itself in one table, and parsing,
 * `--help`, suggestions for misspelt options and exit codes follow from it. Private to daemon/. */
#ifndef SWITCHYARD_DAEMON_CLI_H
#define SWITCHYARD_DAEMON_CLI_H

#include "base/base.h"
#include "conf/conf.h"

/* What the shell sees. Never a signal. */
enum cli_exit {
    CLI_DONE = 0,    /* done */
    CLI_REFUSED = 1, /* a reason is on stderr */
    CLI_WRONG = 2,   /* wrong usage */
    CLI_RUN = -1,    /* from cli_parse only: go on */
};

enum cli_kind {
    CLI_FLAG, /* bool */
    CLI_TEXT, /* const char *, points into argv */
    CLI_SIZE, /* uint64_t bytes: "512MiB" */
    CLI_UINT, /* uint64_t, within [min, max] */
    CLI_REAL, /* double, within [min, max] when max > min */
    CLI_LIST, /* struct cli_list: may be given more than once */
};

struct cli_list {
    const char **items; /* malloc'd array of pointers into argv; free with cli_list_done */
    size_t count;
};
void cli_list_done(struct cli_list *l);

struct cli_option {
    const char *name; /* without dashes; NULL ends the table */
    char letter;      /* 0 = none */
    enum cli_kind kind;
    void *value;            /* of the type above; keeps its value when the option is absent */
    const char *value_name; /* "FILE"; NULL for flags */
    const char *help;       /* one line, says the default */
    double min, max;        /* UINT and REAL: bounds when max > min */
};

struct cli_spec {
    const char *command;   /* "serve", "experts add" */
    const char *arguments; /* of the usage line after the command: "FILE --name N" or "" */
    const char *about;     /* paragraphs: what it does and when one wants it */
    const char *examples;  /* lines, each a command that works */
    const struct cli_option *options;
    size_t args_min, args_max;
};

/* Options may stand before, between and after arguments; `--` ends them; `--name=value` and
 * `--name value` are the same. argv[0] is the command itself. Arguments that are no options are
 * stored in args [args_max]. Returns CLI_RUN, or the exit code of the process (help was printed to
 * stdout, or a complaint to stderr). */
int cli_parse(int argc, char **argv, const struct cli_spec *spec, const char **args,
              size_t *ret_args);
void cli_print_help(const struct cli_spec *spec, FILE *to);

/* "switchyard COMMAND: message" on stderr; returns CLI_REFUSED, so that failing is one statement.
 */
int cli_refuse(const char *command, const struct err *e);
/* "switchyard COMMAND: message" and where help is, on stderr; returns CLI_WRONG. */
int cli_wrong(const char *command, const char *fmt, ...) BASE_PRINTF(2, 3);

/* The candidate closest to `word`, or NULL if none is close: for "did you mean". */
const char *cli_suggest(const char *word, const char *const *candidates, size_t count);

/* An option that is a configuration key under another name; NULL = not given. */
struct cli_setting {
    const char *key, *value;
};
/* `c` (after conf_init) from the file at `path` (NULL = none), over it the environment, over it the settings
 * that were given; validated. */
enum err_code cli_load_conf(struct conf *c, const char *path, const struct cli_setting *settings,
                            size_t settings_count, struct err *e) BASE_NODISCARD;

/* A command of several verbs: `about` above their list, help and suggestions as for commands. */
struct cli_verb {
    const char *name;
    int (*run)(int argc, char **argv); /* argv[0] is the verb */
    const char *help;
};
int cli_run_verb(const char *command, const char *about, const struct cli_verb *verbs, size_t count,
                 int argc, char **argv);

/* A progress bar on stderr when it is a terminal, one line per started part otherwise. */
struct cli_bar {
    char what[64];
    uint64_t last_ns;
    bool terminal, open;
};
void cli_bar_init(struct cli_bar *b);
struct progress cli_bar_progress(struct cli_bar *b); /* valid while *b lives */
void cli_bar_done(struct cli_bar *b);

#endif
