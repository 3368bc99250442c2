// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: the request that follows INIT.
 */

#include "../dev.h"
#include "../fuse_i.h"

struct fuse_iomap_config_args {
	struct fuse_args args;
	struct fuse_iomap_config_in in;
	struct fuse_iomap_config_out out;
	struct fuse_mount *fm;
	/* What INIT has settled, for when the connection is ready */
	struct fuse_chan_param param;
};

static void fuse_iomap_config_end(struct fuse_args *args, int error)
{
	struct fuse_iomap_config_args *ca =
		container_of(args, typeof(*ca), args);
	struct fuse_conn *fc = ca->fm->fc;

	error = fuse_iomap_configure(ca->fm, &ca->in, &ca->out,
				     args->out_args[0].size, error);
	fuse_iomap_count_message(fc, FUSE_IOMAP_CONFIG, error);
	if (error) {
		fc->conn_init = 0;
		fc->conn_error = 1;
	}
	fuse_chan_set_initialized(fc->chan, error ? NULL : &ca->param);
	kfree(ca);
}

/**
 * fuse_iomap_send_config - ask the server how iomap is to be set up
 * @fm: the mount, whose server has just accepted FUSE_IOMAP
 * @param: what INIT has settled
 *
 * No other request is sent until the answer is there.  If it is no good, the
 * connection fails as it does after a bad answer to INIT.
 *
 * Context: May sleep.  Waits for the answer if the mount waits for INIT too;
 * otherwise this may be the task that is going to answer.
 */
void fuse_iomap_send_config(struct fuse_mount *fm,
			    const struct fuse_chan_param *param)
{
	struct fuse_iomap_config_args *ca;
	int err;

	ca = kzalloc_obj(*ca, GFP_KERNEL | __GFP_NOFAIL);
	ca->fm = fm;
	ca->param = *param;
	fuse_iomap_offer(&ca->in);

	ca->args.opcode = FUSE_IOMAP_CONFIG;
	ca->args.in_numargs = 1;
	ca->args.in_args[0].size = sizeof(ca->in);
	ca->args.in_args[0].value = &ca->in;
	ca->args.out_numargs = 1;
	/* A short answer leaves the rest zero */
	ca->args.out_argvar = true;
	ca->args.out_args[0].size = sizeof(ca->out);
	ca->args.out_args[0].value = &ca->out;
	ca->args.force = true;
	ca->args.nocreds = true;

	if (fm->fc->sync_init) {
		ca->args.abort_on_kill = true;
		err = fuse_simple_request(fm, &ca->args);
		if (err > 0)
			err = 0;
	} else {
		ca->args.end = fuse_iomap_config_end;
		err = fuse_simple_background(fm, &ca->args, GFP_KERNEL);
		if (!err)
			return;
	}
	fuse_iomap_config_end(&ca->args, err);
}
