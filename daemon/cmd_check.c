/* switchyard check: is this configuration valid, and what does it come to on this machine. */
#include <stdio.h>
#include <string.h>

#include "daemon/cli.h"
#include "daemon/commands.h"
#include "daemon/report.h"

static const char about[] =
    "Reads a configuration as 'serve' would (file, over it the environment), checks every key\n"
    "and prints the effective one, defaults included, followed by the memory budget it comes\n"
    "to on this machine. API keys are shown as ***. Nothing is opened for writing.";

static const char examples[] = "  switchyard check --config switchyard.yaml\n"
                               "  switchyard check --json | jq .budget\n"
                               "  switchyard check --keys";

static void print_keys(void)
{
    size_t count;
    const struct conf_key_info *keys = conf_keys(&count);
    for (size_t i = 0; i < count; i++)
        printf("%-26s %s, default %s\n    %s\n", keys[i].key, keys[i].type,
               keys[i].default_text[0] != 0 ? keys[i].default_text : "none", keys[i].help);
}

static void print_conf(const struct conf *c, bool json)
{
    struct buf out = {0};
    if (json)
        buf_puts(&out, "{\"configuration\":");
    conf_format(c, json, &out);
    while (json && out.len > 0 && out.data[out.len - 1] == '\n')
        out.data[--out.len] = 0;
    buf_puts(&out, json ? ",\"budget\":" : "\n");
    report_conf(c, json, &out);
    buf_puts(&out, json ? "}\n" : "");
    fwrite(out.data, 1, out.len, stdout);
    buf_done(&out);
}

int cmd_check(int argc, char **argv)
{
    const char *config = NULL;
    bool json = false, keys = false;
    const struct cli_option options[] = {
        {"config", 'c', CLI_TEXT, &config, "FILE", "YAML configuration (none: the defaults)"},
        {"json", 0, CLI_FLAG, &json, NULL, "one JSON object instead of YAML and a table"},
        {"keys", 0, CLI_FLAG, &keys, NULL, "list every key with its type, default and meaning"},
        {NULL},
    };
    const struct cli_spec spec = {
        .command = "check",
        .arguments = "",
        .about = about,
        .examples = examples,
        .options = options,
    };
    struct conf c;
    struct err e = {0};
    int code = cli_parse(argc, argv, &spec, NULL, NULL);
    if (code != CLI_RUN)
        return code;
    if (keys) {
        print_keys();
        return CLI_DONE;
    }
    conf_init(&c);
    if (cli_load_conf(&c, config, NULL, 0, &e) == ERR_OK)
        print_conf(&c, json);
    else
        code = cli_refuse("check", &e);
    conf_done(&c);
    return code == CLI_RUN ? CLI_DONE : code;
}
