/* A command's configuration: file < environment < options, then checked as a whole. */
#include "daemon/cli.h"

enum err_code cli_load_conf(struct conf *c, const char *path, const struct cli_setting *settings,
                            size_t settings_count, struct err *e)
{
    enum err_code code = path != NULL ? conf_load_file(c, path, e) : ERR_OK;
    if (code == ERR_OK)
        code = conf_load_environment(c, e);
    for (size_t i = 0; i < settings_count && code == ERR_OK; i++)
        if (settings[i].value != NULL)
            code = conf_set(c, settings[i].key, settings[i].value, e);
    return code == ERR_OK ? conf_validate(c, e) : code;
}
