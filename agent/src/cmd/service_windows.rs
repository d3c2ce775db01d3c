//! `skein service` on Windows: the agent under the service control manager.
//!
//! The manager starts `skein service run`; the other verbs tell it to. The service has an account of its own, which may
//! write its data directory and nothing else of this machine. Must never run as SYSTEM.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Error, Result, anyhow, bail};
use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceControl, ServiceControlAccept,
    ServiceErrorControl, ServiceExitCode, ServiceFailureActions, ServiceFailureResetPeriod, ServiceInfo,
    ServiceStartType, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};
use windows_service::{define_windows_service, service_dispatcher};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_FAILED_SERVICE_CONTROLLER_CONNECT, ERROR_SERVICE_DOES_NOT_EXIST,
    ERROR_SERVICE_NOT_ACTIVE,
};

use super::say;
use crate::cli::{DataDir, UpArgs};
use crate::config::Config;
use crate::limits::{SERVICE_START_WAIT, SERVICE_STOP_WAIT};
use crate::{daemon, os};

/// What the service manager calls the service.
const NAME: &str = "Skein";
/// The account that Windows makes for a service of this name: no password, no rights beyond those of any user.
const ACCOUNT: &str = r"NT SERVICE\Skein";
/// The system and its administrators, by number: their names are translated.
const SYSTEM: &str = "*S-1-5-18";
const ADMINISTRATORS: &str = "*S-1-5-32-544";

/// The flags of this process, for the function that the service manager calls without any.
static ARGS: OnceLock<UpArgs> = OnceLock::new();
/// Where the state is reported.
static STATE: OnceLock<ServiceStatusHandle> = OnceLock::new();

/// Registers the service, lets its account use the data directory, and starts it; once more for a new binary.
///
/// # Errors
/// Unless `headless`, without an administrator's rights, or when the service does not start.
pub(crate) fn install(data_dir: DataDir, headless: bool) -> Result<ExitCode> {
    if !headless {
        // Windows runs services in a session of their own: the agent would work on while its owner plays.
        bail!(
            "a service cannot see whether anybody uses this machine\nhint: install.ps1 starts an attended agent at your \
             log-on; a service is for machines at which nobody sits: say --headless"
        );
    }
    let data_dir = match data_dir.data_dir {
        Some(given) => crate::config::data_dir(Some(given))?,
        None => PathBuf::from(
            std::env::var_os("ProgramData").context("no %ProgramData%\nhint: pass --data-dir DIR")?,
        )
        .join(NAME),
    };
    let executable = std::env::current_exe().context("cannot find this binary's own path")?;
    let manager = manager(ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE)?;
    let mut arguments: Vec<OsString> = ["service", "run", "--data-dir"].map(OsString::from).into();
    arguments.push(data_dir.clone().into());
    arguments.push("--headless".into());
    let info = ServiceInfo {
        name: NAME.into(),
        display_name: "Skein agent".into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: executable.clone(),
        launch_arguments: arguments,
        dependencies: Vec::new(),
        account_name: Some(ACCOUNT.into()),
        account_password: None,
    };
    let access = ServiceAccess::CHANGE_CONFIG
        | ServiceAccess::QUERY_STATUS
        | ServiceAccess::START
        | ServiceAccess::STOP;
    let service = match manager.open_service(NAME, access) {
        Ok(service) => {
            stop(&service)?;
            service.change_config(&info).map_err(refused("change the service"))?;
            service
        }
        Err(error) if code(&error) == Some(ERROR_SERVICE_DOES_NOT_EXIST) => {
            manager.create_service(&info, access).map_err(refused("create the service"))?
        }
        Err(error) => return Err(refused("open the service")(error)),
    };
    if let Err(error) = describe(&service) {
        // It works without; Windows 7 and Wine know fewer settings.
        eprintln!("warning: Windows will not start the service again if it dies: {}", words(&error));
    }
    fs::create_dir_all(&data_dir).with_context(|| {
        format!("cannot create the data directory {}\nhint: choose another by --data-dir", data_dir.display())
    })?;
    // Everybody may look into %ProgramData% and make directories there, even this one before us.
    icacls(&data_dir, &["/setowner", ADMINISTRATORS, "/Q"])?;
    icacls(&data_dir, &["/reset", "/Q"])?;
    allow(&data_dir, "(OI)(CI)F")?;
    icacls(&data_dir, &["/inheritance:r", "/Q"])?;
    allow(&executable, "RX")?;
    service.start::<&OsStr>(&[]).map_err(refused("start the service"))?;
    let [log, _] = crate::story::files(&data_dir);
    let state = settle(&service, ServiceState::StartPending, SERVICE_START_WAIT)?;
    if state.current_state != ServiceState::Running {
        bail!(
            "the service was registered but did not start ({})\nhint: {} and the event viewer (System, Service Control Manager) say why",
            state_text(state.current_state),
            log.display()
        );
    }
    say(&format!(
        "the service {NAME} runs as {ACCOUNT} and starts with Windows\ndata and key: {}\nlog: {}",
        data_dir.display(),
        log.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Stops the service and takes it out of the service manager; its data stays.
///
/// # Errors
/// Without an administrator's rights, when there is none, or when it does not stop.
pub(crate) fn uninstall() -> Result<ExitCode> {
    let manager = manager(ServiceManagerAccess::CONNECT)?;
    let access = ServiceAccess::QUERY_STATUS
        | ServiceAccess::QUERY_CONFIG
        | ServiceAccess::STOP
        | ServiceAccess::DELETE;
    let service = manager.open_service(NAME, access).map_err(refused("open the service"))?;
    let config = service.query_config().map_err(refused("look at the service"))?;
    stop(&service)?;
    service.delete().map_err(refused("remove the service"))?;
    say(&format!(
        "the service {NAME} is gone; key, log and data stay where it was told to keep them:\n{}",
        config.executable_path.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Tells whether the service runs; the exit code is a failure if it does not.
///
/// # Errors
/// When there is no such service.
pub(crate) fn status() -> Result<ExitCode> {
    let manager = manager(ServiceManagerAccess::CONNECT)?;
    let access = ServiceAccess::QUERY_STATUS | ServiceAccess::QUERY_CONFIG;
    let service = manager.open_service(NAME, access).map_err(refused("open the service"))?;
    let state = service.query_status().map_err(refused("ask for the service's state"))?;
    let config = service.query_config().map_err(refused("look at the service"))?;
    let process = state.process_id.filter(|pid| *pid != 0);
    let process = process.map_or_else(String::new, |pid| format!(", process {pid}"));
    let account = config.account_name.unwrap_or_default();
    say(&format!(
        "{NAME} is {}{process}\naccount: {}\ncommand: {}",
        state_text(state.current_state),
        account.to_string_lossy(),
        config.executable_path.display()
    ))?;
    let runs = state.current_state == ServiceState::Running;
    Ok(if runs { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the agent for the service manager, until that stops it.
///
/// # Errors
/// When it was not the service manager who started this process.
pub(crate) fn run(args: UpArgs) -> Result<ExitCode> {
    if ARGS.set(args).is_err() {
        bail!("the service was started twice in one process");
    }
    service_dispatcher::start(NAME, service_entry).map_err(|error| {
        if code(&error) == Some(ERROR_FAILED_SERVICE_CONTROLLER_CONNECT) {
            return anyhow!(
                "only Windows' service manager can start `skein service run`\nhint: `skein up` starts an agent \
                 here, `skein service install` has the service manager start one"
            );
        }
        refused("serve the service manager")(error)
    })?;
    Ok(ExitCode::SUCCESS)
}

define_windows_service!(service_entry, service_main);

fn service_main(_arguments: Vec<OsString>) {
    let ended = serve();
    if let Err(error) = &ended {
        tracing::error!("{error:#}");
    }
    // A failure is told as one, so that the service manager starts the service again.
    let exit = if ended.is_ok() { ServiceExitCode::NO_ERROR } else { ServiceExitCode::ServiceSpecific(1) };
    report(ServiceState::Stopped, exit);
}

fn serve() -> Result<()> {
    let state = service_control_handler::register(NAME, control)
        .context("cannot register with the service manager")?;
    let _ = STATE.set(state);
    report(ServiceState::StartPending, ServiceExitCode::NO_ERROR);
    let args = ARGS.get().cloned().unwrap_or_default();
    let data_dir = crate::config::data_dir(args.data_dir.clone())?;
    super::up::tell(&data_dir);
    // Its last words too: a service has no standard error.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    let config = Config::load(args)?;
    report(ServiceState::Running, ServiceExitCode::NO_ERROR);
    smol::future::block_on(daemon::run(config))
}

/// Called by the service manager on a thread of its own.
fn control(control: ServiceControl) -> ServiceControlHandlerResult {
    if matches!(control, ServiceControl::Stop | ServiceControl::Shutdown) {
        report(ServiceState::StopPending, ServiceExitCode::NO_ERROR);
        os::ask_to_leave();
        return ServiceControlHandlerResult::NoError;
    }
    if control == ServiceControl::Interrogate {
        return ServiceControlHandlerResult::NoError;
    }
    ServiceControlHandlerResult::NotImplemented
}

fn report(current_state: ServiceState, exit_code: ServiceExitCode) {
    let pending = matches!(current_state, ServiceState::StartPending | ServiceState::StopPending);
    let controls_accepted = if current_state == ServiceState::Running {
        ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN
    } else {
        ServiceControlAccept::empty()
    };
    let status = ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state,
        controls_accepted,
        exit_code,
        checkpoint: u32::from(pending),
        wait_hint: if pending { SERVICE_STOP_WAIT } else { Duration::ZERO },
        process_id: None,
    };
    if let Some(state) = STATE.get()
        && let Err(error) = state.set_service_status(status)
    {
        tracing::warn!(%error, "the service manager does not take the service's state");
    }
}

/// What the service manager shows, and what it does when the agent dies.
fn describe(service: &Service) -> windows_service::Result<()> {
    let again = |seconds| ServiceAction {
        action_type: ServiceActionType::Restart,
        delay: Duration::from_secs(seconds),
    };
    let actions = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(Duration::from_secs(3_600)),
        reboot_msg: None,
        command: None,
        actions: Some(vec![again(5), again(60), again(600)]),
    };
    service
        .set_description("Works on shares of training and inference while this machine is idle.")
        .and_then(|()| service.update_failure_actions(actions))
        .and_then(|()| service.set_failure_actions_on_non_crash_failures(true))
}

/// Ends the service if it runs.
fn stop(service: &Service) -> Result<()> {
    match service.stop() {
        Ok(_) => {}
        Err(error) if code(&error) == Some(ERROR_SERVICE_NOT_ACTIVE) => return Ok(()),
        Err(error) => return Err(refused("stop the service")(error)),
    }
    let state = settle(service, ServiceState::StopPending, SERVICE_STOP_WAIT)?;
    if state.current_state != ServiceState::Stopped {
        bail!(
            "the service is {} after {} s\nhint: end process {} in the task manager, then say the same again",
            state_text(state.current_state),
            SERVICE_STOP_WAIT.as_secs(),
            state.process_id.unwrap_or(0)
        );
    }
    Ok(())
}

/// Waits until the service has left the state `passing`, and tells the one that it is in, or is still in after `patience`.
fn settle(service: &Service, passing: ServiceState, patience: Duration) -> Result<ServiceStatus> {
    let until = Instant::now() + patience;
    loop {
        let state = service.query_status().map_err(refused("ask for the service's state"))?;
        if state.current_state != passing || Instant::now() >= until {
            return Ok(state);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Lets the service, the system and administrators use `path` and what is below it.
fn allow(path: &Path, rights: &str) -> Result<()> {
    let grants = [ACCOUNT, SYSTEM, ADMINISTRATORS].map(|who| format!("{who}:{rights}"));
    let [service, system, administrators] = &grants;
    icacls(path, &["/grant", service, system, administrators, "/T", "/Q"])
}

fn icacls(path: &Path, arguments: &[&str]) -> Result<()> {
    let root = std::env::var_os("SystemRoot").context("no %SystemRoot%\nhint: is this a Windows shell?")?;
    let tool = Path::new(&root).join("System32").join("icacls.exe");
    let ended = Command::new(&tool).arg(path).args(arguments).output();
    let ended = ended.with_context(|| format!("cannot start {}", tool.display()))?;
    if !ended.status.success() {
        let said = [ended.stdout, ended.stderr].concat();
        bail!(
            "cannot set who may use {}: {}\nhint: say the same again as an administrator",
            path.display(),
            String::from_utf8_lossy(&said).trim()
        );
    }
    Ok(())
}

fn manager(access: ServiceManagerAccess) -> Result<ServiceManager> {
    ServiceManager::local_computer(None::<&OsStr>, access).map_err(refused("ask the service manager"))
}

fn system_error(error: &windows_service::Error) -> Option<&io::Error> {
    if let windows_service::Error::Winapi(error) = error { Some(error) } else { None }
}

/// What the system says of an error.
fn words(error: &windows_service::Error) -> String {
    system_error(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The system's own number of an error.
fn code(error: &windows_service::Error) -> Option<u32> {
    system_error(error)?.raw_os_error().map(i32::cast_unsigned)
}

fn refused(what: &str) -> impl FnOnce(windows_service::Error) -> Error {
    move |error| {
        let hint = match code(&error) {
            Some(ERROR_ACCESS_DENIED) => {
                "start the terminal by `Run as administrator` and say the same again"
            }
            Some(ERROR_SERVICE_DOES_NOT_EXIST) => "`skein service install` registers the service",
            _ => "the event viewer (System, Service Control Manager) may say more",
        };
        anyhow!("cannot {what}: {}\nhint: {hint}", words(&error))
    }
}

fn state_text(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Stopped => "stopped",
        ServiceState::StartPending => "starting",
        ServiceState::StopPending => "stopping",
        ServiceState::Running => "running",
        ServiceState::ContinuePending => "continuing",
        ServiceState::PausePending => "pausing",
        ServiceState::Paused => "paused",
    }
}
